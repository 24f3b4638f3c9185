# SPDX-License-Identifier: Apache-2.0
"""The stages of a picture of FLUX.2 klein 4B in PyTorch with random weights, measured on request.

    python bench/peers/torch_gpu.py eager|compiled|gemlite [--device cuda] [--small]
                                    [--tiles FILE]

gpu.py starts it. It needs torch, diffusers and transformers; "gemlite" (the kernels of the released
stack: block linears in 2 bits, groups of 128) needs that package too and changes the transformer
only. It times many tiles at each new shape, and chooses better when nothing else runs: --tiles
keeps what it has chosen in a file, or takes the choice from there if the file exists. Each line
that is read asks for one figure:

    {"stage": "step", "width": 512, "height": 512, "batch": 1, "seconds": 1.0}

and is answered by a line {"ms": ..., "runs": ..., "peak": ..., "took": ...}, or {"error": ...}:
the median of some `seconds` of runs after warm-up, by the clock, with the device waited for; the
bytes that torch had allocated at most in them, weights of all stages included; the seconds that
it all took. Stages: encoder, step (the denoising loop over its steps), vae, picture (all of them,
up to bytes in the host's memory). The pictures of a batch share their prompt.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch

TEXT_TOKENS, STEPS, PATCH, CHANNELS, LATENT = 512, 4, 16, 128, 32
TEXT_LAYERS = (9, 18, 27)
LEAST_RUNS, MOST_RUNS = 3, 40


def transformer(small):
    from diffusers import Flux2Transformer2DModel

    blocks = (1, 1, 2) if small else (5, 20, 24)
    return Flux2Transformer2DModel(
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        num_attention_heads=blocks[2],
        joint_attention_dim=96 if small else 7680,
        guidance_embeds=False,
    )


def decoder(small):
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(block_out_channels=(32,) * 4 if small else (128, 256, 512, 512))


def encoder(small):
    from transformers import Qwen3Config, Qwen3Model

    sizes = (32, 64, 28, 2, 1, 16) if small else (2560, 9728, 36, 32, 8, 128)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim")  # fmt: skip
    return Qwen3Model(Qwen3Config(vocab_size=151936, rope_theta=1e6, **dict(zip(names, sizes))))  # noqa: B905


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


class Picture:
    """All networks of a picture in bfloat16, made where they run."""

    def __init__(self, way, device, small):
        self.device, self.small = device, small
        wrap = torch.compile if way == "compiled" else (lambda module, **_: module)
        net = self._made(transformer)
        net = with_gemlite(net) if way == "gemlite" else net
        self.width = 96 if small else 7680
        self.net = wrap(net, dynamic=False)
        self.words = wrap(self._made(encoder), dynamic=False)
        self.vae = self._made(decoder)
        self.decode = wrap(self.vae.decode, dynamic=False)
        if device == "cuda":
            torch.cuda.empty_cache()

    def _made(self, make):
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                return make(self.small).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)

    def random(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def ids(self, height, width):
        """Positions (t, y, x, l) of the picture's tokens and of the text's."""
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        image = torch.stack([0 * y, y, x, 0 * y], -1).reshape(-1, 4)
        words = torch.zeros(TEXT_TOKENS, 4, dtype=image.dtype)
        words[:, 3] = torch.arange(TEXT_TOKENS)
        return image.to(self.device), words.to(self.device)

    def encode(self, tokens):
        states = self.words(tokens, use_cache=False, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in TEXT_LAYERS], -1)

    def denoise(self, text, height, width):
        image, words = self.ids(height, width)
        latents = self.random(len(text), height * width, CHANNELS)
        sigmas = torch.linspace(1, 0, STEPS + 1).tolist()
        for now, then in zip(sigmas, sigmas[1:]):  # noqa: B905
            time_ = torch.full((len(text),), now, device=self.device, dtype=torch.bfloat16)
            velocity = self.net(
                hidden_states=latents,
                encoder_hidden_states=text,
                timestep=time_,
                img_ids=image[None],
                txt_ids=words[None],
                return_dict=False,
            )[0]
            latents = latents + (then - now) * velocity
        return latents

    def drawn(self, latents, height, width):
        batch = len(latents)
        z = latents.transpose(1, 2).reshape(batch, LATENT, 2, 2, height, width)
        z = z.permute(0, 1, 4, 2, 5, 3).reshape(batch, LATENT, 2 * height, 2 * width)
        pixels = self.decode(z).sample
        return (pixels.clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)

    def stage(self, name, width, height, batch):
        """A function that runs the stage once."""
        rows, cols = height // PATCH, width // PATCH
        tokens = torch.randint(0, 150000, (1, TEXT_TOKENS), device=self.device)
        text = self.random(batch, TEXT_TOKENS, self.width)
        latents = self.random(batch, rows * cols, CHANNELS)
        return {
            "encoder": lambda: self.encode(tokens),
            "step": lambda: self.denoise(text, rows, cols),
            "vae": lambda: self.drawn(latents, rows, cols),
            "picture": lambda: self.drawn(
                self.denoise(self.encode(tokens).repeat(batch, 1, 1), rows, cols), rows, cols
            ).cpu(),
        }[name]


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def answer(picture, ask):
    """The figure asked for."""
    began, device = time.monotonic(), picture.device
    run = picture.stage(ask["stage"], ask["width"], ask["height"], ask["batch"])
    for _ in range(2):
        run()
    wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, until = [], time.monotonic() + ask["seconds"]
    while len(times) < LEAST_RUNS or (time.monotonic() < until and len(times) < MOST_RUNS):
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    ms = 1e3 * statistics.median(times) / (STEPS if ask["stage"] == "step" else 1)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"ms": ms, "runs": len(times), "peak": peak, "took": time.monotonic() - began}


def kept_tiles(path):
    """Reads gemlite's choices; else a function that writes those made up to then."""
    import gemlite

    if os.path.exists(path):
        gemlite.load_config(path)
        return lambda: None

    def write():
        gemlite.cache_config(path + ".part")
        os.replace(path + ".part", path)  # who is ended meanwhile leaves no half a file

    return write


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("way", choices=("eager", "compiled", "gemlite"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--tiles", help="file of what gemlite has chosen; written if there is none")
    args = parser.parse_args()
    keep = kept_tiles(args.tiles) if args.tiles and args.way == "gemlite" else lambda: None
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print to what is left of it
    with torch.inference_mode():
        picture = Picture(args.way, args.device, args.small)
        name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        hello = {"device": name, "torch": torch.__version__}
        print(json.dumps(hello), file=out, flush=True)
        for line in sys.stdin:
            try:
                found = answer(picture, json.loads(line))
                keep()
            except Exception as error:  # out of memory at one size leaves the others
                found = {"error": f"{type(error).__name__}: {error}"[:300]}
                if args.device == "cuda":
                    torch.cuda.empty_cache()
            print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
