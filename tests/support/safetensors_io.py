# SPDX-License-Identifier: Apache-2.0
"""A streaming safetensors writer: one tensor in memory at a time, no dependency but numpy."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, shape (slowest axis first) and safetensors type name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 holding bfloat16, rounded to nearest even. Inputs are finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    carry = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + carry) >> np.uint32(16)).astype(np.uint16)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """The little-endian bytes of `values` stored as `dtype`."""
    if dtype == "BF16":
        return bf16_bits(values).tobytes()
    kinds = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    return np.ascontiguousarray(values).astype(kinds[dtype], copy=False).tobytes()


def _write_file(path: Path, entries: list[Entry], make: Callable[[Entry], np.ndarray]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data shall start on a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            data = encode(make(entry), entry.dtype)
            if len(data) != entry.nbytes:
                raise ValueError(f"{entry.name}: {len(data)} bytes made, {entry.nbytes} declared")
            file.write(data)


def _split(entries: list[Entry], limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.nbytes
    return shards


def write_model(
    folder: Path,
    stem: str,
    entries: list[Entry],
    make: Callable[[Entry], np.ndarray],
    shard_bytes: int = 1 << 32,
) -> None:
    """Write `entries` as STEM.safetensors, or as shards with an index when they pass the limit."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(entries, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / f"{stem}.safetensors", entries, make)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, make)
        weight_map.update({entry.name: name for entry in shard})
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": weight_map,
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
