# SPDX-License-Identifier: Apache-2.0
"""--to mlx: the layout of the packed MLX releases, in MLX's affine quantisation, which holds every
type of the model file exactly: w = q scale + bias with

    ternary  2 bits, groups of 128, scale d, bias -d       Q4_1  4 bits, groups of 32, d, m
    binary   1 bit, groups of 128, scale 2 d, bias -d      Q4_0  4 bits, groups of 32, d, -8 d
                                                           Q8_0  8 bits, groups of 32, d, -128 d
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from . import blocks, floats, gguf
from . import ggml_types as types
from .errors import ConvertError
from .export import (
    Out,
    Written,
    idle_layer,
    low_bit_kind,
    new_folder,
    plain,
    scales_fit_bf16,
    step_of,
    write_json,
    write_safetensors,
)
from .export_diffusers import FILES, by_part, source_name, vae_outs, write_card, write_settings
from .layout import Found
from .progress import Progress
from .safetensors import Files

_BITS = {"ternary": 2, "binary": 1}
_TEXT_TYPES = {types.Q4_0: 4, types.Q4_1: 4, types.Q8_0: 8}
_GROUP = 32


def _triple(
    files: Files, found: Found, stem: str, bits: int, group: int, dtype: str, decode
) -> list[Out]:
    """weight, scales and biases; `decode` gives (words, scale, bias) of rows."""
    n, k = found.expected.shape
    step = step_of(found.entry)

    def part(index: int):
        def make(first: int, rows: int) -> np.ndarray:
            x = decode(files, found, first, rows)[index]
            if index == 0:
                return x
            if dtype == "BF16":
                return floats.to_bf16(x)
            if np.abs(x).max(initial=0) > 65504:
                raise ConvertError(f"{found.entry.where}: a scale is too large for fp16")
            return x.astype(np.float16)

        return make

    return [
        Out(f"{stem}.weight", "U32", (n, k * bits // 32), n, part(0), step),
        Out(f"{stem}.scales", dtype, (n, k // group), n, part(1), step),
        Out(f"{stem}.biases", dtype, (n, k // group), n, part(2), step),
    ]


def _trits(bits: int):
    def decode(files: Files, found: Found, first: int, rows: int) -> tuple:
        groups = found.entry.groups(files, first, rows)
        d = groups.scales.astype(np.float32)
        pack = blocks.pack_pq2_0 if bits == 2 else blocks.pack_q1_0
        words = np.ascontiguousarray(pack(groups.trits, groups.scales)[:, 2:]).view("<u4")
        return words, (d if bits == 2 else 2 * d), -d

    return decode


def _affine(kind: types.TensorType):
    def decode(files: Files, found: Found, first: int, rows: int) -> tuple:
        packed = found.entry.blocks(files, first, rows).reshape(-1, kind.bytes)
        if kind is types.Q8_0:
            q, d = blocks.unpack_q8_0(packed)
            d = d.astype(np.float32)
            return (q.view(np.uint8) ^ np.uint8(128)).view("<u4"), d, -128 * d
        if kind is types.Q4_0:
            q, d = blocks.unpack_q4_0(packed)
            d = d.astype(np.float32)
            bias = -8 * d
        else:
            q, d, m = blocks.unpack_q4_1(packed)
            d, bias = d.astype(np.float32), m.astype(np.float32)
        words = np.ascontiguousarray(q[:, 0::2] | (q[:, 1::2] << np.uint8(4)))
        return words.view("<u4"), d, bias

    return decode


def _transformer(files: Files, found: list[Found], written: Written) -> tuple[list[Out], int]:
    """Tensors, and the bits of the low-bit ones (0: there are none)."""
    outs, bits = [], 0
    kinds = {f.expected.source: low_bit_kind(files, f) for f in found}
    if "ternary" in kinds.values():  # one width for all
        kinds = {n: k and "ternary" for n, k in kinds.items()}
    for f in found:
        kind = kinds[f.expected.source]
        if kind is None:
            outs.append(plain(files, f, f.expected.source, written))
            continue
        bits = _BITS[kind]
        dtype = "BF16" if scales_fit_bf16(files, f.entry) else "F16"
        stem = f.expected.source.removesuffix(".weight")
        outs += _triple(files, f, stem, bits, blocks.GROUP, dtype, _trits(bits))
    return outs, bits


def _text(files: Files, found: list[Found], written: Written) -> tuple[list[Out], dict]:
    """Tensors, and bits by module."""
    outs, bits = [], {}
    for f in found:
        kind, exact = f.entry.stored(files)
        name = source_name(f.expected)
        if not exact or kind not in _TEXT_TYPES or len(f.expected.shape) != 2:
            outs.append(plain(files, f, name, written))
            continue
        stem = name.removesuffix(".weight")
        bits[stem] = _TEXT_TYPES[kind]
        outs += _triple(files, f, stem, bits[stem], _GROUP, "F16", _affine(kind))
    return outs, bits


def _quantization(bits: dict[str, int]) -> dict:
    """mlx-lm's settings: what most modules have, and the others by name."""
    usual = Counter(bits.values()).most_common(1)[0][0]
    others = {m: {"group_size": _GROUP, "bits": b} for m, b in bits.items() if b != usual}
    return {"group_size": _GROUP, "bits": usual} | others


def write(files: Files, checkpoint, keys: dict[str, gguf.Value], folder: Path, written: Written):
    found = by_part(checkpoint.tensors)
    dit, dit_bits = _transformer(files, found["transformer"], written)
    layers = found["text_encoder"] + idle_layer(checkpoint.pipeline)
    text, text_bits = _text(files, layers, written)
    places = {
        "transformer": "transformer-packed-mflux" if dit_bits else "transformer",
        "text_encoder": "text_encoder-mlx-4bit" if text_bits else "text_encoder",
        "vae": "vae",
    }
    outs = {
        "transformer": dit, "text_encoder": text, "vae": vae_outs(files, found["vae"], written)
    }  # fmt: skip
    total = sum(o.nbytes for part in outs.values() for o in part)
    with new_folder(folder, total) as temporary:
        write_settings(temporary, keys, places)
        write_card(temporary, keys)
        if dit_bits:
            write_json(
                temporary / places["transformer"] / "quantization_config.json",
                {"bits": dit_bits, "group_size": blocks.GROUP},
            )
        if text_bits:
            add_to_json(
                temporary / places["text_encoder"] / "config.json",
                {"quantization": _quantization(text_bits)},
            )
        with Progress(total) as progress:
            for part, tensors in outs.items():
                write_safetensors(temporary / places[part] / FILES[part], tensors, progress)


def add_to_json(path: Path, more: dict) -> None:
    write_json(path, json.loads(path.read_text("utf-8")) | more)
