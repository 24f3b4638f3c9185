# SPDX-License-Identifier: Apache-2.0
"""The stages of a picture of FLUX.2 klein 4B in PyTorch on one GPU, with random weights.

    python bench/peers/torch_gpu.py [--size 512x512,1024x1024] [--json FILE]
        [--ways eager,compiled,gemlite] [--repeat 15]

Needs torch, diffusers and transformers; "gemlite" (the kernels of the released stack, 2-bit weights
in groups of 128) needs that package too. Prints milliseconds: the median of --repeat runs between
device events, after warm-up, and the memory that the way takes at its peak. Beside it, for the same
machine: bonsai-bench --device cuda:0.
"""

import argparse
import json
import statistics

import torch

TEXT_TOKENS, STEPS, PATCH = 512, 4, 16


def transformer():
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    )


def decoder():
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2()


def encoder():
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_theta=1e6,
    )
    return Qwen3Model(config)


def built(make):
    """The module in bfloat16 with random weights, made where it runs."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def with_gemlite(net):
    """The transformer with its block linears as ternary codes in gemlite's 2-bit packing."""
    from gemlite.core import DType, GemLiteLinearTriton

    for name, module in list(net.named_modules()):
        if not isinstance(module, torch.nn.Linear) or "transformer_blocks." not in name:
            continue
        rows, cols = module.weight.shape
        packed = GemLiteLinearTriton(
            W_nbits=2,
            group_size=128,
            in_features=cols,
            out_features=rows,
            input_dtype=DType.BF16,
            output_dtype=DType.BF16,
        )
        codes = torch.randint(0, 3, (rows, cols), device="cuda", dtype=torch.uint8)
        scales = torch.rand(rows * cols // 128, 1, device="cuda", dtype=torch.bfloat16) * 0.02
        packed.pack(codes, scales, torch.ones_like(scales), None)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, packed)
    return net


def milliseconds(run, repeat):
    for _ in range(3):
        run()
    times = []
    for _ in range(repeat):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def grid_ids(height, width, text):
    """Positions (t, y, x, l) of the picture's tokens and of the text's."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([0 * y, y, x, 0 * y], -1).reshape(-1, 4)
    words = torch.zeros(text, 4, dtype=image.dtype)
    words[:, 3] = torch.arange(text)
    return image.cuda(), words.cuda()


def step_inputs(height, width):
    image, words = grid_ids(height, width, TEXT_TOKENS)
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    return dict(
        hidden_states=torch.randn(1, height * width, 128, **kind),
        encoder_hidden_states=torch.randn(1, TEXT_TOKENS, 7680, **kind),
        timestep=torch.full((1,), 0.7, **kind),
        img_ids=image[None],
        txt_ids=words[None],
        return_dict=False,
    )


def measure(way, sizes, repeat):
    """{(stage, size): ms} and peak bytes; gemlite changes the transformer only."""
    torch.cuda.reset_peak_memory_stats()
    wrap = torch.compile if way == "compiled" else (lambda module: module)
    found = {}
    net = built(transformer)
    net = with_gemlite(net) if way == "gemlite" else net
    step = wrap(net)
    for height, width in sizes:
        inputs = step_inputs(height // PATCH, width // PATCH)
        found["step", (height, width)] = milliseconds(lambda i=inputs: step(**i), repeat)
    if way != "gemlite":
        words = built(encoder)
        ids = torch.randint(0, 150000, (1, TEXT_TOKENS), device="cuda")
        read = wrap(words)
        found["encoder", None] = milliseconds(lambda: read(ids, use_cache=False), repeat)
        vae = built(decoder)
        decode = wrap(vae.decode)
        for height, width in sizes:
            z = torch.randn(1, 32, height // 8, width // 8, device="cuda", dtype=torch.bfloat16)
            found["vae", (height, width)] = milliseconds(lambda z=z: decode(z), repeat)
    return found, torch.cuda.max_memory_allocated()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", default="512x512,1024x1024")
    parser.add_argument("--ways", default="eager,compiled")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json")
    args = parser.parse_args()
    sizes = [tuple(map(int, reversed(s.split("x")))) for s in args.size.split(",")]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    rows = []
    with torch.inference_mode():
        for way in args.ways.split(","):
            found, peak = measure(way, sizes, args.repeat)
            for (stage, size), ms in found.items():
                name = f"{size[1]}x{size[0]}" if size else ""
                rows.append(dict(way=way, stage=stage, size=name, ms=ms, peak=peak))
                print(f"{way:10} {stage:8} {name:10} {ms:9.2f} ms", flush=True)
            for size in sizes:
                if ("vae", size) in found:
                    whole = found["encoder", None] + STEPS * found["step", size]
                    whole += found["vae", size]
                    name = f"{size[1]}x{size[0]}"
                    rows.append(dict(way=way, stage="image", size=name, ms=whole, peak=peak))
                    print(f"{way:10} {'image':8} {name:10} {whole:9.2f} ms (sum of the stages)")
            print(f"{way:10} {'memory':8} {'':10} {peak / 1e9:9.2f} GB")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
