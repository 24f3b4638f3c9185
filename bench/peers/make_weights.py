# SPDX-License-Identifier: Apache-2.0
"""Random weights of klein 4B's shapes for other engines: speed does not depend on the values.

    python bench/peers/make_weights.py sd.cpp OUT [--type Q1_0]   # three files, 5.4 GB
    python bench/peers/make_weights.py flux2.c OUT                # bf16 in diffusers' layout, 16 GB

sd.cpp: block linears in --type, modulations and the text encoder in Q8_0, the rest in BF16. One
piece of random blocks is written again and again; scales keep the variance, so that no value
overflows. flux2.c also needs OUT/tokenizer: `python tests/support/real_tokenizer.py OUT/tokenizer`
makes one of the real size.
"""

from __future__ import annotations

import argparse
import json
import sys
from math import prod
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "convert")]

from bonsai_convert import ggml_types, gguf  # noqa: E402
from bonsai_convert.ggml_types import TensorType  # noqa: E402
from support import checkpoint, configs, layout  # noqa: E402
from support.safetensors_io import Entry, bf16_bits, write_model  # noqa: E402

# Types that our converter does not write: (type, offsets of the 16-bit scales in a block).
Q2_K = TensorType("Q2_K", 10, 256, 84)
SCALES = {"Q1_0": (0,), "Q2_0": (0,), "Q8_0": (0,), "Q4_0": (0,), "Q2_K": (80, 82)}
TYPES = {name: ggml_types.BY_NAME.get(name, Q2_K) for name in SCALES}
# Root mean square of a code, which the scale has to make up for.
SPREAD = {"Q1_0": 1.0, "Q2_0": 0.82, "Q8_0": 74.0, "Q4_0": 4.6, "Q2_K": 12.0}
BLOCKS = 1 << 16  # of the random piece

DOUBLE = (
    ("img_attn.qkv", 3, 1), ("img_attn.proj", 1, 1), ("img_mlp.0", 6, 1), ("img_mlp.2", 1, 3),
    ("txt_attn.qkv", 3, 1), ("txt_attn.proj", 1, 1), ("txt_mlp.0", 6, 1), ("txt_mlp.2", 1, 3),
)  # fmt: skip


def transformer_tensors(config: dict):
    """Names as the original checkpoint has them, shapes in units of the width; q, k, v fused."""
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    yield "img_in.weight", (width, config["in_channels"])
    yield "txt_in.weight", (width, config["joint_attention_dim"])
    yield "time_in.in_layer.weight", (width, config["timestep_guidance_channels"])
    yield "time_in.out_layer.weight", (width, width)
    for name, rows in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6),
                       ("single_stream_modulation", 3)):  # fmt: skip
        yield f"{name}.lin.weight", (rows * width, width)
    for i in range(config["num_layers"]):
        for name, rows, cols in DOUBLE:
            yield f"double_blocks.{i}.{name}.weight", (rows * width, cols * width)
        for side in ("img", "txt"):
            for norm in ("query_norm", "key_norm"):
                yield f"double_blocks.{i}.{side}_attn.norm.{norm}.scale", (head,)
    for i in range(config["num_single_layers"]):
        yield f"single_blocks.{i}.linear1.weight", (9 * width, width)
        yield f"single_blocks.{i}.linear2.weight", (width, 4 * width)
        for norm in ("query_norm", "key_norm"):
            yield f"single_blocks.{i}.norm.{norm}.scale", (head,)
    yield "final_layer.adaLN_modulation.1.weight", (2 * width, width)
    yield "final_layer.linear.weight", (config["in_channels"], width)


def type_of(name: str, shape: tuple[int, ...], packed: TensorType) -> TensorType:
    if len(shape) == 1:
        return ggml_types.F32
    if "modulation" in name or name.startswith("model."):
        return ggml_types.Q8_0
    return packed if "_blocks." in name else ggml_types.BF16


def random_piece(kind: TensorType, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Bytes of BLOCKS random blocks whose weights have about that deviation."""
    if kind.block == 1:
        values = random.standard_normal(BLOCKS).astype(np.float32) * np.float32(deviation)
        raw = bf16_bits(values) if kind is ggml_types.BF16 else values + np.float32(1)
        return raw.view(np.uint8)
    raw = random.integers(0, 256, (BLOCKS, kind.bytes), np.uint8)
    if kind.name == "Q2_0":  # codes are 0 to 2
        raw[:, 2:] &= ~((raw[:, 2:] >> 1) & 0x55)
    for offset in SCALES[kind.name]:
        scale = np.float16(deviation / SPREAD[kind.name])
        raw[:, offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return raw.reshape(-1)


def write_gguf(path: Path, architecture: str, tensors, packed: TensorType) -> None:
    random = np.random.default_rng(1)
    infos = [gguf.TensorInfo(name, shape, type_of(name, shape, packed)) for name, shape in tensors]
    keys = {
        "general.architecture": gguf.string(architecture),
        "general.quantization_version": gguf.u32(2),
    }
    with gguf.Writer(path, keys, infos) as writer:
        writer.start()
        for info in infos:
            piece = random_piece(info.type, 0.7 * info.shape[-1] ** -0.5, random)
            for start in range(0, info.nbytes, len(piece)):
                writer.write(piece[: info.nbytes - start])
            writer.end_tensor()
        writer.commit()
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")


def vae_entries(config: dict) -> list[Entry]:
    kinds = {"bn.num_batches_tracked": "I64", "bn.running_mean": "F32", "bn.running_var": "F32"}
    return [Entry(n, s, kinds.get(n, "BF16")) for n, s in layout.vae_tensors(config)]


def make_vae(folder: Path, stem: str, recipe: configs.Recipe) -> None:
    entries = vae_entries(configs.vae_config(recipe))
    write_model(folder, stem, entries, lambda entry: checkpoint.vae_values(recipe, entry))


def for_sd_cpp(out: Path, recipe: configs.Recipe, packed: TensorType) -> None:
    config = configs.transformer_config(recipe)
    dit = out / f"dit-{packed.name.lower()}.gguf"
    write_gguf(dit, "flux", transformer_tensors(config), packed)
    text = layout.text_tensors(text_config(recipe))
    write_gguf(out / "llm-q8_0.gguf", "qwen3", text, ggml_types.Q8_0)
    make_vae(out, "vae", recipe)


def text_config(recipe: configs.Recipe) -> dict:
    ids = {"<|endoftext|>": 151643, "<|im_end|>": 151645}
    return configs.text_config(recipe, 151936, ids)


def for_flux2_c(out: Path, recipe: configs.Recipe) -> None:
    tile = np.random.default_rng(1).standard_normal(1 << 22, np.float32)

    def values(entry: Entry) -> np.ndarray:
        count = prod(entry.shape)
        if len(entry.shape) == 1:
            return np.float32(1) + np.float32(0.1) * np.resize(tile, count)
        return np.resize(tile, count) * np.float32(0.7 * entry.shape[-1] ** -0.5)

    text, transformer = text_config(recipe), configs.transformer_config(recipe)
    texts = [Entry(n, s, "BF16") for n, s in layout.text_tensors(text)]
    # The program knows two files of the text encoder and one of the transformer.
    half = sum(entry.nbytes for entry in texts) * 3 // 5
    write_model(out / "text_encoder", "model", texts, values, half)
    blocks = [Entry(n, s, "BF16") for n, s in layout.transformer_tensors(transformer)]
    write_model(out / "transformer", "diffusion_pytorch_model", blocks, values, 1 << 40)
    make_vae(out / "vae", "diffusion_pytorch_model", recipe)
    for name, config in (("text_encoder", text), ("transformer", transformer)):
        (out / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "model_index.json").write_text(json.dumps(configs.model_index(recipe)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engine", choices=("sd.cpp", "flux2.c"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=sorted(TYPES), default="Q1_0", help="of block linears")
    parser.add_argument("--config", choices=("tiny", "full"), default="full")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = configs.Recipe(args.config)
    if args.engine == "sd.cpp":
        for_sd_cpp(args.out, recipe, TYPES[args.type])
    else:
        for_flux2_c(args.out, recipe)


if __name__ == "__main__":
    main()
