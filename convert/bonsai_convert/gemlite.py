# SPDX-License-Identifier: Apache-2.0
"""GemLite state dicts: codes of 1 or 2 bits, stored transposed.

A module X has, with e codes in an element of W_q:
    X.W_q         uint8 or int32 [K / e, N]: element [r, n] holds columns r e .. r e + e - 1 of
                  output row n, the first in the lowest bits
    X.scales      float32 (or 16-bit) [K / group, N]
    X.zeros       the same
    X.metadata    int32 [12]; [10] says how scale and zero are applied
    X.orig_shape  int32 [2] = [N, K]
The transposed bytes of a row are one stream of codes. A square module cannot be told from its
transpose by shapes: orig_shape and the fixed rule above decide, nothing is tried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import floats
from .errors import ConvertError
from .jsonfile import brief
from .safetensors import Entry, Files
from .tensor import Affine, Codes, finite, unpack

# Output rows read and transposed together: fewer would make reads too short. It divides all widths
# of klein, and is no power of two, whose strides fall onto one another in a cache.
_WINDOW_ROWS = 3072
_LEAVES = ("W_q", "scales", "zeros", "metadata", "orig_shape")
_ITEM_BYTES = {"U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}


@dataclass(frozen=True)
class GemliteTensor(Affine):
    name: str
    shape: tuple[int, ...]
    bits: int
    group: int
    folded: bool  # w = q scale + zero, else w = (q - zero) scale
    w_q: Entry
    scales: Entry
    zeros: Entry

    @property
    def path(self) -> Path:
        return self.w_q.path

    @property
    def nbytes(self) -> int:
        return self.w_q.nbytes + self.scales.nbytes + self.zeros.nbytes

    @property
    def format(self) -> str:
        return f"gemlite int{self.bits} g{self.group}"

    def sample(self, count: int) -> list[tuple[int, int]]:
        return [(0, min(self.rows, count))]

    def _transposed(self, files: Files, entry: Entry, lines: int, index: int) -> np.ndarray:
        """Window `index` of a [lines, N] array as bytes [rows of the window, lines x item]."""
        item = entry.nbytes // (lines * self.rows)

        def make() -> np.ndarray:
            first = index * _WINDOW_ROWS
            count = min(_WINDOW_ROWS, self.rows - first)
            raw = files.read_columns(
                entry, lines, self.rows * item, first * item, count * item
            ).view(f"<u{item}")
            return np.ascontiguousarray(raw.T).view(np.uint8).reshape(count, lines * item)

        return files.window((entry, index), make)

    def _rows(self, files: Files, entry: Entry, lines: int, first: int, rows: int) -> np.ndarray:
        parts = []
        while rows:
            index, skip = divmod(first, _WINDOW_ROWS)
            part = self._transposed(files, entry, lines, index)[skip : skip + rows]
            parts.append(part)
            first, rows = first + len(part), rows - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def pairs(self, files: Files, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        lines = self.row // self.group
        found = []
        for entry in (self.scales, self.zeros):
            raw = np.ascontiguousarray(self._rows(files, entry, lines, first, rows))
            kind = entry.dtype
            found.append(floats.to_f32(raw.view(floats.RAW_DTYPE[kind]), kind))
        scale, zero = found
        finite(self, scale, zero)
        if self.folded:
            return scale, zero
        bias = -(zero * scale)
        if not np.array_equal(bias, -(zero.astype(np.float64) * scale)):
            raise ConvertError(
                f"{self.where}: zero x scale is no float32 number; save it with gemlite's default "
                "packing (scale mode 4)"
            )
        return scale, bias

    def codes(self, files: Files, first: int, rows: int) -> Codes:
        lines = self.row * self.bits // (8 * _ITEM_BYTES[self.w_q.dtype])
        packed = self._rows(files, self.w_q, lines, first, rows)
        scale, bias = self.pairs(files, first, rows)
        return Codes(unpack(packed, self.bits), scale, bias)


def _integers(files: Files, entry: Entry, count: int) -> list[int]:
    """A small integer tensor of the file."""
    if entry.dtype not in ("I32", "I64") or entry.shape != (count,):
        raise ConvertError(
            f"{entry.where}: {entry.dtype} {list(entry.shape)}, expected {count} whole numbers"
        )
    raw = files.read_bytes(entry.path, entry.offset, entry.nbytes)
    return [int(v) for v in raw.view("<i4" if entry.dtype == "I32" else "<i8")]


def _tensor(files: Files, module: str, leaves: dict[str, Entry]) -> GemliteTensor:
    absent = [leaf for leaf in _LEAVES if leaf not in leaves]
    packed = leaves["W_q"]
    if absent:
        raise ConvertError(f"{packed.where}: '{module}.{absent[0]}' is missing beside it")
    n, k = _integers(files, leaves["orig_shape"], 2)
    meta = _integers(files, leaves["metadata"], 12)
    bits, group, per_item, channel, mode = meta[1], meta[2], meta[4], meta[9], meta[10]
    if (channel, mode) not in ((0, 4), (0, 3), (1, 1)):
        raise ConvertError(
            f"{packed.where}: gemlite scale mode {mode} with channel mode {channel}; 3, 4 and "
            "the single group of 1 with 1 are known: save it with gemlite's default packing"
        )
    if packed.dtype not in _ITEM_BYTES or bits not in (1, 2, 4, 8):
        raise ConvertError(f"{packed.where}: codes of {brief(bits)} bits in {packed.dtype}")
    item = _ITEM_BYTES[packed.dtype]
    fits = n > 0 and k > 0 and group > 0 and k % group == 0 and k * bits % (8 * item) == 0
    if not fits or per_item != 8 * item // bits or packed.shape != (k * bits // (8 * item), n):
        raise ConvertError(
            f"{packed.where}: {packed.dtype} {list(packed.shape)} does not hold [{n}, {k}] codes "
            f"of {bits} bits, {per_item} an element, in groups of {group}: damaged, or transposed"
        )
    for leaf in ("scales", "zeros"):
        e = leaves[leaf]
        if e.dtype not in floats.RAW_DTYPE or e.shape != (k // group, n):
            raise ConvertError(
                f"{e.where}: {e.dtype} {list(e.shape)}, expected floats {[k // group, n]}"
            )
    return GemliteTensor(
        f"{module}.weight", (n, k), bits, group, mode == 4, packed, leaves["scales"],
        leaves["zeros"],
    )  # fmt: skip


def is_gemlite(entries: dict[str, Entry]) -> bool:
    return any(name.endswith(".W_q") for name in entries) and any(
        name.endswith(".orig_shape") for name in entries
    )


def tensors(entries: dict[str, Entry]) -> dict[str, GemliteTensor | Entry]:
    """The tensors of a flat state dict under the names of diffusers."""
    modules: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.W_q" in entries:
            modules.setdefault(module, {})[leaf] = entry
    found: dict[str, GemliteTensor | Entry] = {}
    files = Files()
    try:
        for name, entry in entries.items():
            module, _, leaf = name.rpartition(".")
            if module not in modules:
                found[name] = entry
            elif leaf == "W_q":
                found[f"{module}.weight"] = _tensor(files, module, modules[module])
            elif leaf not in (*_LEAVES, "meta_scale"):
                found[name] = entry  # a bias, or something unknown: not to be dropped in silence
    finally:
        files.close()
    return found
