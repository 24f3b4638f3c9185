# SPDX-License-Identifier: Apache-2.0
"""8-bit floats of ComfyUI's and BFL's single files, read exactly.

A weight is E4M3 (no infinities, one NaN) or E5M2, alone or with a scale for the whole tensor in
'X.weight_scale', 'X.scale_weight' or 'X.weight.scale'. Scales of activations, which those programs
use to compute in 8 bits, say nothing about the weights and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import ggml_types as types
from .errors import ConvertError
from .floats import to_bf16, to_f32
from .ggml_types import TensorType
from .safetensors import Entry, Files
from .tensor import Tensor

_SCALES = ("weight_scale", "scale_weight", "weight.scale")
_IGNORED = ("input_scale", "scale_input", "comfy_quant")
_MARKERS = ("scaled_fp8",)


def _table(exponent: int, mantissa: int, infinities: bool) -> np.ndarray:
    """float32 values of the 256 patterns."""
    u = np.arange(256)
    e = (u >> mantissa) & ((1 << exponent) - 1)
    m = (u & ((1 << mantissa) - 1)) / (1 << mantissa)
    bias = (1 << (exponent - 1)) - 1
    value = np.where(e == 0, m * 2.0 ** (1 - bias), (1 + m) * 2.0 ** (e.astype(float) - bias))
    top = (1 << exponent) - 1
    value[(e == top) & (infinities | (u % 128 == 127))] = np.nan
    return np.where(u < 128, value, -value).astype(np.float32)


VALUES = {"F8_E4M3": _table(4, 3, False), "F8_E5M2": _table(5, 2, True)}


@dataclass(frozen=True)
class Fp8(Tensor):
    """w = value of the byte, times the scale if there is one."""

    entry: Entry
    scale: Entry | None
    dtype = "F32"

    @property
    def path(self) -> Path:
        return self.entry.path

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes + (self.scale.nbytes if self.scale else 0)

    @property
    def format(self) -> str:
        return self.entry.dtype + (" scaled" if self.scale else "")

    def _values(self, files: Files) -> np.ndarray:
        """float32 values of the 256 patterns with the scale applied."""
        table = VALUES[self.entry.dtype]
        if self.scale is None:
            return table
        scale = to_f32(files.read(self.scale, 0, 1), self.scale.dtype)
        return table * scale

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        at = self.entry.offset + first * self.row
        codes = files.read_bytes(self.path, at, rows * self.row)
        values = self._values(files)[codes]
        if not np.isfinite(values).all():
            raise ConvertError(
                f"{self.where}: holds NaN or infinity; the checkpoint is damaged: download it again"
            )
        return values.view(np.uint32)

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        values = self._values(files)
        values = values[np.isfinite(values)]
        return types.BF16, bool((to_f32(to_bf16(values), "BF16") == values).all())


def is_fp8(tensors: dict[str, Tensor]) -> bool:
    return any(isinstance(t, Entry) and t.dtype in VALUES for t in tensors.values())


def _scale_of(name: str, entries: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    stem = name.removesuffix(".weight")
    for leaf in _SCALES:
        if (scale := entries.get(f"{stem}.{leaf}")) is not None:
            return f"{stem}.{leaf}", scale
    return None


def combine(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights joined with their scales; everything else as it was."""
    result, used = {}, set()
    for name, entry in entries.items():
        if not (isinstance(entry, Entry) and entry.dtype in VALUES):
            continue
        found = _scale_of(name, entries)
        if found is not None:
            key, scale = found
            if scale.shape not in ((), (1,)) or scale.dtype not in ("F32", "BF16", "F16"):
                raise ConvertError(
                    f"{scale.where}: {scale.dtype} {list(scale.shape)}, expected one number for "
                    "the whole tensor; this scaled 8-bit format is not read: take the bf16 file"
                )
            used.add(key)
        if len(entry.shape) < 2 or f"{name.removesuffix('.weight')}.weight_scale_2" in entries:
            raise ConvertError(f"{entry.where}: {entry.dtype} in a form that is not read; take the "
                               "bf16 file")  # fmt: skip
        result[name] = Fp8(entry, found[1] if found else None)
    for name, entry in entries.items():
        ignored = name.rpartition(".")[2] in _IGNORED or name.rpartition(".")[2] in _MARKERS
        if name not in result and name not in used and not ignored:
            result[name] = entry
    return result
