# SPDX-License-Identifier: Apache-2.0
"""Writes an unpacked low-bit checkpoint again in the layouts of other runtimes. Needs numpy only.

    python tests/support/pack_layouts.py mlx|gemlite SOURCE OUT [--plain-text]

mlx      transformer-packed-mflux/ in 1 or 2 bits and text_encoder-mlx-4bit/
gemlite  transformer-gemlite-int1|2/state_dict.pt and text_encoder-hqq-4bit/qmodel.pt

--plain-text keeps the text encoder as it is. `tests/convert/test_layouts.py` holds the packers
against files that the foreign libraries wrote. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import torch_io

GROUP = 128
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U32": "<u4"}
Array = tuple[str, tuple[int, ...], np.ndarray]  # dtype name, shape, bytes of any numpy type


def read_file(path: Path) -> dict[str, Array]:
    """Tensors of a safetensors file, mapped."""
    data = np.memmap(path, np.uint8, "r")
    length = struct.unpack("<Q", data[:8].tobytes())[0]
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    found = {}
    for name, e in header.items():
        begin, end = (8 + length + o for o in e["data_offsets"])
        raw = data[begin:end].view(_NUMPY[e["dtype"]]).reshape(e["shape"])
        found[name] = (e["dtype"], tuple(e["shape"]), raw)
    return found


def read_folder(folder: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= read_file(path)
    return found


class SafetensorsWriter:
    """Tensors in the order in which they come; the header is written last, into a gap before."""

    def __init__(self, path: Path, room: int = 1 << 20) -> None:
        self._file, self._room, self._header, self._at = open(path, "wb"), room, {}, 0
        self._file.seek(8 + room)

    def add(self, name: str, array: Array) -> None:
        dtype, shape, data = array
        data = np.ascontiguousarray(data)
        end = self._at + data.nbytes
        self._header[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [self._at, end],
        }  # fmt: skip
        self._file.write(memoryview(data.reshape(-1)).cast("B"))
        self._at = end

    def close(self) -> None:
        text = json.dumps(self._header).encode()
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text)} bytes")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))
        self._file.close()


def to_f32(array: Array) -> np.ndarray:
    dtype, _, raw = array
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def codes_and_scales(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [N, K] of low-bit weights -> int8 [N, K] in -1..1, float32 [N, K / 128]."""
    scale = np.abs(values.reshape(len(values), -1, GROUP)).max(axis=2)
    return np.sign(values).astype(np.int8), scale.astype(np.float32)


def bit_stream(q: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [N, K] -> bytes [N, K bits / 8], the first code in the lowest bits."""
    per_byte = 8 // bits
    out = np.zeros((len(q), q.shape[1] // per_byte), np.uint8)
    for i in range(per_byte):
        out |= q[:, i::per_byte] << np.uint8(i * bits)
    return out


def float16_or_bf16(x: np.ndarray) -> Array:
    """As BF16, which released files use, where that is exact, else F16."""
    upper = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if np.array_equal((upper.astype(np.uint32) << 16).view(np.float32), x):
        return "BF16", x.shape, upper
    return "F16", x.shape, x.astype(np.float16)


def mlx_arrays(module: str, codes: np.ndarray, scale: np.ndarray, bits: int) -> dict[str, Array]:
    """The three arrays of a low-bit module."""
    q = codes + 1 if bits == 2 else codes > 0
    words = bit_stream(q.astype(np.uint8), bits).view("<u4")
    return {
        f"{module}.weight": ("U32", words.shape, words),
        f"{module}.scales": float16_or_bf16(scale if bits == 2 else 2 * scale),
        f"{module}.biases": float16_or_bf16(-scale),
    }


def gemlite_arrays(
    module: str, codes: np.ndarray, scale: np.ndarray, bits: int, meta_scale: bool = False
) -> dict[str, Array]:
    """The arrays of a low-bit module; one group a row has another formula in gemlite."""
    q = (codes + 1 if bits == 2 else codes > 0).astype(np.uint8)
    single = q.shape[1] == GROUP
    step = scale if bits == 2 else 2 * scale
    zeros = np.full_like(scale, 1 if bits == 2 else 0.5) if single else -scale
    mode = (1, 1) if single else (0, 4)
    meta = [0, bits, GROUP, (1 << bits) - 1, 8 // bits, 1, 1, 0, 0, *mode, 1]
    found = {
        f"{module}.W_q": ("U8", None, bit_stream(q, bits).T),
        f"{module}.scales": ("F32", None, step.T),
        f"{module}.zeros": ("F32", None, zeros.T),
        f"{module}.metadata": ("I32", None, np.array(meta, np.int32)),
        f"{module}.orig_shape": ("I32", None, np.array(q.shape, np.int32)),
    }
    if meta_scale:
        found[f"{module}.meta_scale"] = ("F32", None, np.zeros((), np.float32))
    return {n: (d, a.shape, a) for n, (d, _, a) in found.items()}


def four_bits(values: np.ndarray, group: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q uint8 [N, K], lowest value and step float32 [N, K / group] of a plain 4-bit grid."""
    x = values.reshape(len(values), -1, group)
    low, high = x.min(axis=2), x.max(axis=2)
    step = np.maximum((high - low) / 15, np.float32(2**-14)).astype(np.float16)
    grid = (x - low[..., None]) / step.astype(np.float32)[..., None]
    q = np.clip(np.rint(grid), 0, 15).astype(np.uint8)
    return q.reshape(values.shape), low, step.astype(np.float32)


def mlx_four_bits(module: str, values: np.ndarray) -> dict[str, Array]:
    q, low, step = four_bits(values)
    words = bit_stream(q, 4).view("<u4")
    pair = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (step, low)]
    return {
        f"{module}.weight": ("U32", words.shape, words),
        f"{module}.scales": ("BF16", step.shape, pair[0]),
        f"{module}.biases": ("BF16", low.shape, pair[1]),
    }


def hqq_module(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, group: int = 64) -> dict:
    """What HQQ keeps for a module: q uint8 [N, K], scale and zero float16 [N, K / group]."""
    grouped = q.reshape(-1, group)
    half = len(grouped) // 2
    packed = grouped[:half] << np.uint8(4) | grouped[half:]
    flat = [("F16", (len(grouped), 1), x.astype(np.float16)) for x in (scale, zero)]
    return {
        "W_q": ("U8", packed.shape, packed), "nbits": 4, "group_size": group,
        "shape": tuple(q.shape), "scale": flat[0], "zero": flat[1], "axis": 1,
        "packing": "4bit_u8", "unpack_view_dtype": torch_io.Global("torch", "uint8"),
        "view_as_float": False, "quant_scale": False, "quant_zero": False,
        "compute_dtype": torch_io.Global("torch", "float16"), "offload_meta": False,
    }  # fmt: skip


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "transformer_blocks." in name


def _low_bit_modules(source: Path) -> Iterator[tuple[str, Array, tuple | None]]:
    """(name, array, (codes, scales) of low-bit ones) of the transformer's tensors."""
    for name, array in read_folder(source / "transformer").items():
        packed = codes_and_scales(to_f32(array)) if is_block_linear(name, array[1]) else None
        yield name, array, packed


def _bits(source: Path) -> int:
    """1 where the first block linear has no zeros, else 2."""
    for _, _, packed in _low_bit_modules(source):
        if packed is not None:
            return 2 if (packed[0] == 0).any() else 1
    raise ValueError(f"{source}: no block linears")


def _link(source: Path, out: Path, name: str) -> None:
    """The part that all layouts share, without a copy of its bytes."""
    out.mkdir(parents=True, exist_ok=True)
    if (source / name).exists():
        os.symlink((source / name).resolve(), out / name)


def write_mlx(source: Path, out: Path, plain_text: bool) -> None:
    bits = _bits(source)
    folder = out / "transformer-packed-mflux"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "transformer/config.json").read_bytes())
    settings = {"bits": bits, "group_size": GROUP}
    (folder / "quantization_config.json").write_text(json.dumps(settings))
    writer = SafetensorsWriter(folder / "diffusion_pytorch_model.safetensors")
    for name, array, packed in _low_bit_modules(source):
        arrays = {name: array}
        if packed is not None:
            arrays = mlx_arrays(name.removesuffix(".weight"), *packed, bits)
        for n, a in arrays.items():
            writer.add(n, a)
    writer.close()
    if plain_text:
        return
    folder = out / "text_encoder-mlx-4bit"
    folder.mkdir()
    config = json.loads((source / "text_encoder/config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    writer = SafetensorsWriter(folder / "model.safetensors")
    for name, array in read_folder(source / "text_encoder").items():
        arrays = {name: array}
        if len(array[1]) == 2 and array[1][1] % 64 == 0:
            arrays = mlx_four_bits(name.removesuffix(".weight"), to_f32(array))
        for n, a in arrays.items():
            writer.add(n, a)
    writer.close()


def write_gemlite(source: Path, out: Path, plain_text: bool, meta_scale: bool = False) -> None:
    bits = _bits(source)
    folder = out / f"transformer-gemlite-int{bits}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "transformer/config.json").read_bytes())
    kind = f"gemlite-int{bits}-{'ternary-' if bits == 2 else ''}g128"
    settings = {"format": kind, "bits": bits, "group_size": GROUP, "packing_bitwidth": 8}
    (folder / "quantization_config.json").write_text(json.dumps(settings))
    with torch_io.Writer(folder / "state_dict.pt") as writer:
        tree = {}
        for name, array, packed in _low_bit_modules(source):
            arrays = {name: array}
            if packed is not None:
                module = name.removesuffix(".weight")
                arrays = gemlite_arrays(module, *packed, bits, meta_scale)
            tree |= {n: writer.tensor(*a) for n, a in arrays.items()}
        writer.finish(tree)
    if plain_text:
        return
    folder = out / "text_encoder-hqq-4bit"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "text_encoder/config.json").read_bytes())
    with torch_io.Writer(folder / "qmodel.pt") as writer:
        tree = {}
        for name, array in read_folder(source / "text_encoder").items():
            module = name.removesuffix(".weight")
            leaves = {"weight": array}
            plain = len(array[1]) != 2 or array[1][1] % 64 or "embed_tokens" in name
            if not plain:
                q, low, step = four_bits(to_f32(array))
                leaves = hqq_module(q, step, -low / step)
            tree[module] = {
                k: writer.tensor(*v) if isinstance(v, tuple) and isinstance(v[0], str) else v
                for k, v in leaves.items()
            }
        if "model.embed_tokens" in tree:
            tree["lm_head"] = dict(tree["model.embed_tokens"])
        writer.finish(tree)


def write(layout: str, source: Path, out: Path, plain_text: bool = False, **options) -> None:
    """A whole repository in `layout`; what the layouts share is linked."""
    shared = ["model_index.json", "vae", "tokenizer", *(["text_encoder"] if plain_text else [])]
    if layout == "mlx":
        shared.append("scheduler")
    for name in shared:
        _link(source, out, name)
    {"mlx": write_mlx, "gemlite": write_gemlite}[layout](source, out, plain_text, **options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("layout", choices=("mlx", "gemlite"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--plain-text", action="store_true")
    args = parser.parse_args()
    write(args.layout, args.source, args.out, args.plain_text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
