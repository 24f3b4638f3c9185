# SPDX-License-Identifier: Apache-2.0
"""HQQ's 4-bit modules in a .pt file: module name -> {W_q, scale, zero, ...}.

With axis 1 the weight is seen as [N K / group, group]. W_q [N K / (2 group), group] holds group r
in the high nibbles of its row r and group r + N K / (2 group) in the low ones: the first half of
the matrix in the high nibbles, the second in the low. w = (q - zero) scale, zero no whole number.

A state dict that HQQ encoded for safetensors has its plain values as small tensors: numbers and
shapes as int32 or int64, truth values and texts as uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import floats
from .errors import ConvertError
from .jsonfile import brief
from .safetensors import Entry, Files
from .tensor import Affine, Codes, Tensor, finite


@dataclass(frozen=True)
class HqqTensor(Affine):
    name: str
    shape: tuple[int, ...]
    group: int
    w_q: Entry
    scale: Entry
    zero: Entry
    bits: int = 4

    @property
    def path(self) -> Path:
        return self.w_q.path

    @property
    def nbytes(self) -> int:
        return self.w_q.nbytes + self.scale.nbytes + self.zero.nbytes

    @property
    def format(self) -> str:
        return f"HQQ 4-bit g{self.group}"

    def _scale_and_zero(self, files: Files, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        per_row = self.row // self.group
        found = []
        for entry in (self.scale, self.zero):
            raw = files.read(entry, first * per_row, rows * per_row)
            found.append(floats.to_f32(raw, entry.dtype).reshape(rows, per_row))
        finite(self, *found)
        return found[0], found[1]

    def pairs(self, files: Files, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = self._scale_and_zero(files, first, rows)
        return scale, -(zero * scale)

    def _nibbles(self, files: Files, first: int, rows: int) -> np.ndarray:
        """Codes of the groups of these rows: uint8 [rows, K]."""
        per_row = self.row // self.group
        half = self.w_q.shape[0]
        start, end = first * per_row, (first + rows) * per_row
        parts = []
        for low, high, shift in ((start, min(end, half), 4), (max(start, half), end, 0)):
            if low >= high:
                continue
            at = self.w_q.offset + (low % half if shift == 0 else low) * self.group
            raw = files.read_bytes(self.path, at, (high - low) * self.group)
            parts.append(raw >> np.uint8(4) if shift else raw & np.uint8(15))
        return np.concatenate(parts).reshape(rows, self.row)

    def codes(self, files: Files, first: int, rows: int) -> Codes:
        scale, bias = self.pairs(files, first, rows)
        return Codes(self._nibbles(files, first, rows), scale, bias)

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        """(q - zero) scale in float32: the difference is exact, the product rounded once."""
        scale, zero = self._scale_and_zero(files, first, rows)
        q = self._nibbles(files, first, rows).reshape(*scale.shape, self.group)
        values = q.astype(np.float32)
        values -= zero[..., None]
        values *= scale[..., None]
        return values.reshape(-1).view(np.uint32)


_SETTINGS = {
    "nbits": 4, "packing": "4bit_u8", "axis": 1, "view_as_float": False,
    "quant_scale": False, "quant_zero": False,
}  # fmt: skip
_LEAVES = (
    "W_q", "scale", "zero", *_SETTINGS, "shape", "group_size", "channel_wise", "optimize",
    "round_zero", "offload_meta", "stores_quant_config", "compute_dtype", "unpack_view_dtype",
)  # fmt: skip


def is_hqq(entries: dict[str, Entry], values: dict[str, object]) -> bool:
    return any(
        n.endswith(".W_q") and (f"{n[:-4]}.nbits" in values or f"{n[:-4]}.nbits" in entries)
        for n in entries
    )


def _plain(files: Files, entry: Entry, like: object) -> object:
    """An encoded value; what it is not is left for the caller to refuse."""
    kind = {"I32": "<i4", "I64": "<i8", "U8": "<u1", "BOOL": "<u1"}.get(entry.dtype)
    if kind is None or entry.nbytes > 256:
        return entry.dtype
    found = files.read_bytes(entry.path, entry.offset, entry.nbytes).view(kind).tolist()
    if isinstance(like, str):
        return bytes(v & 0xFF for v in found).decode("latin-1")
    if isinstance(like, tuple):
        return tuple(found)
    if len(found) != 1:
        return tuple(found)
    return bool(found[0]) if isinstance(like, bool) else found[0]


def _settings(
    files: Files, module: str, entries: dict[str, Entry], values: dict[str, object]
) -> dict[str, object]:
    """The plain values of a module, encoded or not."""
    found = {}
    for key, like in {**_SETTINGS, "shape": (), "group_size": 0}.items():
        name = f"{module}.{key}"
        if name in values:
            found[key] = values[name]
        elif name in entries:
            found[key] = _plain(files, entries[name], like)
    return found


def _tensor(
    files: Files, module: str, entries: dict[str, Entry], values: dict[str, object]
) -> HqqTensor:
    packed = entries[f"{module}.W_q"]
    settings = _settings(files, module, entries, values)
    for key, wanted in _SETTINGS.items():
        value = settings.get(key, wanted)
        if type(value) is not type(wanted) or value != wanted:
            raise ConvertError(
                f"{packed.where}: HQQ '{key}' is {brief(value)}, expected {brief(wanted)}; no "
                "other packing of HQQ is read: take the unpacked or the MLX text encoder"
            )
    shape, group = settings.get("shape"), settings.get("group_size")
    scale, zero = entries.get(f"{module}.scale"), entries.get(f"{module}.zero")
    good = isinstance(shape, tuple) and len(shape) == 2
    good = good and all(type(v) is int and 0 < v < 1 << 32 for v in shape)
    good = good and type(group) is int and group in (32, 64, 128) and shape[1] % group == 0
    good = good and scale is not None and zero is not None
    if good:
        groups = shape[0] * shape[1] // group
        good = packed.dtype == "U8" and packed.shape == (groups // 2, group) and groups % 2 == 0
        good = good and all(
            e.dtype in floats.RAW_DTYPE and e.shape == (groups, 1) for e in (scale, zero)
        )
    if not good:
        raise ConvertError(
            f"{packed.where}: {packed.dtype} {list(packed.shape)} with shape {brief(shape)}, "
            f"group_size {brief(group)}, scale and zero do not belong together; download again"
        )
    return HqqTensor(f"{module}.weight", shape, group, packed, scale, zero)


def tensors(entries: dict[str, Entry], values: dict[str, object]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    files = Files()
    try:
        for name, entry in entries.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "W_q":
                found[f"{module}.weight"] = _tensor(files, module, entries, values)
            elif f"{module}.W_q" not in entries or leaf not in _LEAVES:
                if leaf != "encoded_state_dict":
                    found[name] = entry
    finally:
        files.close()
    return found
