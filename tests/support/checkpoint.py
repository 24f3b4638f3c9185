# SPDX-License-Identifier: Apache-2.0
"""Makes small klein checkpoints in the diffusers directory layout. Needs numpy only.

    python tests/support/checkpoint.py --config tiny --weights ternary OUT

The bytes depend on the recipe alone: not on the machine, nor on the numpy version. The random
weights are scaled so that every stage does visible work (attention is neither flat nor one-hot,
gates and modulations matter, the picture is neither grey nor clipped) and rounding errors do not
explode on the way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import configs, layout, rawrandom, safetensors_io
from support.configs import Recipe
from support.safetensors_io import Entry, write_model

GROUP = 128  # weights along the input axis that share one scale
TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "tokenizer_small"


def _bell(seed: int, name: str, shape: tuple[int, ...], mean: float, deviation: float):
    values = rawrandom.bell(seed, name, prod(shape)) * deviation + mean
    return values.astype(np.float32).reshape(shape)


def low_bit_matrix(
    seed: int, name: str, shape: tuple[int, int], kind: str, deviation: float
) -> np.ndarray:
    """float16 (out, in): each group of 128 inputs is one scale times -1, 0, +1 (binary: no 0).

    About one zero in 24 is a negative zero, and some ternary groups (always the last of the
    first row) hold nothing but zeros: a converter has to read both.
    """
    rows, columns = shape
    if columns % GROUP:
        raise ValueError(f"{name}: {columns} inputs are not a multiple of {GROUP}")
    grouped = (rows, columns // GROUP, GROUP)
    draw = rawrandom.octets(seed, name + "/codes", rows * columns).reshape(grouped)
    spread = rawrandom.uniform(seed, name + "/scales", rows * (columns // GROUP))
    if kind == "binary":
        code = np.where(draw < 128, -1.0, 1.0)
        density = 1.0
    else:
        code = np.where(draw < 80, -1.0, np.where(draw < 160, 1.0, 0.0))
        code = np.where((draw >= 160) & (draw < 164), -0.0, code)
        density = 160 / 256
        empty = rawrandom.words(seed, name + "/empty", rows * (columns // GROUP)) % 400 == 0
        empty = empty.reshape(grouped[:2])
        empty[0, -1] = True
        code[empty] *= 0.0
    scale = (deviation / density**0.5) * (0.65 + 0.7 * spread)
    scale = scale.astype(np.float16).reshape(rows, columns // GROUP, 1)
    return (code.astype(np.float16) * scale).reshape(shape)


# Gain of a linear over the variance-keeping 1 / sqrt(inputs).
_TRANSFORMER_GAIN = (
    ("time_guidance_embed", 2.0),
    ("modulation", 0.5),
    ("norm_out", 0.5),
    ("context_embedder", 0.6),
)


def transformer_values(recipe: Recipe, entry: Entry) -> np.ndarray:
    name = f"transformer/{entry.name}"
    if len(entry.shape) == 1:  # gains of the query and key norms
        return _bell(recipe.seed, name, entry.shape, 1.2, 0.12)
    deviation = entry.shape[1] ** -0.5
    if layout.is_block_linear(entry.name, entry.shape):
        if recipe.weights != "dense":
            return low_bit_matrix(recipe.seed, name, entry.shape, recipe.weights, deviation)
        return _bell(recipe.seed, name, entry.shape, 0.0, deviation)
    gain = next((gain for key, gain in _TRANSFORMER_GAIN if key in entry.name), 1.0)
    return _bell(recipe.seed, name, entry.shape, 0.0, gain * deviation)


def text_values(recipe: Recipe, entry: Entry, layers: int, first_token: int) -> np.ndarray:
    name = f"text_encoder/{entry.name}"
    if len(entry.shape) == 1:
        return _bell(recipe.seed, name, entry.shape, 1.0, 0.1)
    if entry.name == "model.embed_tokens.weight":
        table = _bell(recipe.seed, name, entry.shape, 0.0, 0.8)
        if recipe.outlier:
            # Qwen-class decoders carry a few huge channels on the first token, unnormalised, all
            # the way to the transformer's context embedder.
            table[first_token, 5 * entry.shape[1] // 8] = recipe.outlier
            table[first_token, entry.shape[1] // 4] = -recipe.outlier / 3
        return table
    gain = 1.5 / (2 * layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1.0
    return _bell(recipe.seed, name, entry.shape, 0.0, gain * entry.shape[1] ** -0.5)


def vae_values(recipe: Recipe, entry: Entry) -> np.ndarray:
    name = f"vae/{entry.name}"
    if entry.dtype == "I64":
        return np.zeros(entry.shape, np.int64)
    if entry.name == "bn.running_mean":
        return _bell(recipe.seed, name, entry.shape, 0.0, 0.2)
    if entry.name == "bn.running_var":
        spread = rawrandom.uniform(recipe.seed, name, prod(entry.shape))
        return (0.8 + 2.4 * spread).astype(np.float32)
    if entry.name.endswith("bias"):
        return _bell(recipe.seed, name, entry.shape, 0.0, 0.06)
    if len(entry.shape) == 1:  # gains of the group norms
        return _bell(recipe.seed, name, entry.shape, 1.0, 0.12)
    gain = 0.45 if entry.name == "decoder.conv_out.weight" else 1.1
    return _bell(recipe.seed, name, entry.shape, 0.0, gain * prod(entry.shape[1:]) ** -0.5)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def install_tokenizer(folder: Path) -> tuple[dict[str, int], int]:
    """Write the tokenizer directory. Returns (ids of the added tokens, number of ids).

    The committed fixture holds the facts once; the older files that Qwen checkpoints also carry
    are derived from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    state = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    _write_json(folder / "vocab.json", state["model"]["vocab"])
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    _write_json(folder / "added_tokens.json", added)
    (folder / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    return added, len(state["model"]["vocab"]) + len(added)


def make(recipe: Recipe, folder: Path, shard_bytes: int = 1 << 32) -> Path:
    """Write the checkpoint of `recipe` into `folder` and return it."""
    added, ids = install_tokenizer(folder / "tokenizer")
    vocab_size = -(-ids // 128) * 128  # Qwen's embedding has unused rows at its end, too

    text = configs.text_config(recipe, vocab_size, added)
    _write_json(folder / "text_encoder" / "config.json", text)
    layers, first = text["num_hidden_layers"], added["<|im_start|>"]
    write_model(
        folder / "text_encoder",
        "model",
        [Entry(name, shape, "BF16") for name, shape in layout.text_tensors(text)],
        lambda entry: text_values(recipe, entry, layers, first),
        shard_bytes,
    )

    transformer = configs.transformer_config(recipe)
    _write_json(folder / "transformer" / "config.json", transformer)
    kind = "BF16" if recipe.weights == "dense" else "F16"
    write_model(
        folder / "transformer",
        "diffusion_pytorch_model",
        [Entry(name, shape, kind) for name, shape in layout.transformer_tensors(transformer)],
        lambda entry: transformer_values(recipe, entry),
        shard_bytes,
    )

    vae = configs.vae_config(recipe)
    _write_json(folder / "vae" / "config.json", vae)
    kinds = {"bn.num_batches_tracked": "I64", "bn.running_mean": "F32", "bn.running_var": "F32"}
    write_model(
        folder / "vae",
        "diffusion_pytorch_model",
        [Entry(name, shape, kinds.get(name, "BF16")) for name, shape in layout.vae_tensors(vae)],
        lambda entry: vae_values(recipe, entry),
        shard_bytes,
    )

    _write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler_config(recipe))
    _write_json(folder / "model_index.json", configs.model_index(recipe))
    return folder


def digest(folder: Path) -> str:
    """SHA-256 over every file of a checkpoint: its relative path, then its bytes."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@lru_cache(maxsize=1)
def source_hash() -> str:
    """A short hash of the code and data that decide the bytes of a recipe."""
    sources = [Path(module.__file__) for module in (configs, layout, rawrandom, safetensors_io)]
    total = hashlib.sha256(Path(__file__).read_bytes())
    for path in [*sources, *sorted(TOKENIZER.iterdir())]:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", choices=sorted(configs.CONFIGS), default="tiny")
    parser.add_argument("--weights", choices=configs.WEIGHTS, default="dense")
    parser.add_argument("--outlier", type=float, default=0.0)
    parser.add_argument("--small-decoder", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=1 << 32)
    args = parser.parse_args()
    recipe = Recipe(args.config, args.weights, args.outlier, args.small_decoder, args.seed)
    make(recipe, args.out, args.shard_bytes)
    print(f"{recipe.label}: {digest(args.out)} -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
