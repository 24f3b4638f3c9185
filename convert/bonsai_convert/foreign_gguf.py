# SPDX-License-Identifier: Apache-2.0
"""Parts of a model in GGUF files of other programs: llama.cpp, stable-diffusion.cpp, ComfyUI.

gguf.Reader is the one parser; here its tensors become sources of the converter. Types that the
model file has are taken over block by block, ternary and binary ones as codes and scales, all
others as the numbers they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import blocks, gguf, kquants, lowbit, quantize, rename
from . import ggml_types as types
from .errors import ConvertError
from .floats import RAW_DTYPE
from .ggml_types import TensorType
from .safetensors import Entry, Files
from .tensor import Tensor

UNPACKED = "prism-ml/bonsai-image-ternary-4B-unpacked"
_TRITS = {**blocks.UNPACK_TRITS, **kquants.UNPACK_TRITS}
_READABLE = {*RAW_DTYPE, "Q8_0", "Q4_0", "Q4_1", *_TRITS, *kquants.DEQUANTIZE}
# What holds a type best that the model file does not have; trits times fp16 scales fit into fp16.
_NEAREST = {
    "Q4_K": (types.Q4_1, False), "Q2_K": (types.Q8_0, False), "Q5_0": (types.Q8_0, False),
    "Q5_1": (types.Q8_0, False), "Q5_K": (types.Q8_0, False), "Q6_K": (types.Q8_0, False),
    "Q2_0": (types.F16, True), "TQ1_0": (types.F16, True), "TQ2_0": (types.F16, True),
}  # fmt: skip


@dataclass(frozen=True)
class Blocked(Tensor):
    """A tensor in blocks, each with its own scale."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int
    dtype = "F32"

    @property
    def format(self) -> str:
        return self.type.name

    def _read(self, files: Files, first: int, rows: int) -> np.ndarray:
        """Blocks of rows as bytes [n, block bytes], their scales finite."""
        size = self.nbytes // self.rows
        raw = files.read_bytes(self.path, self.offset + first * size, rows * size)
        packed = raw.reshape(-1, self.type.bytes)
        for at in kquants.F16_FIELDS[self.type.name]:
            if ((packed[:, at + 1] & np.uint8(0x7C)) == 0x7C).any():
                raise ConvertError(
                    f"{self.where}: a scale is NaN or infinity; the file is damaged: download it "
                    "again"
                )
        return packed

    def values(self, packed: np.ndarray) -> np.ndarray:
        name = self.type.name
        if name in kquants.DEQUANTIZE:
            return kquants.DEQUANTIZE[name](packed)
        if name in _TRITS:
            trits, d = _TRITS[name](packed)
            return (trits.astype(np.float32) - np.float32(1)) * d.astype(np.float32)[:, None]
        return blocks.dequantize(name, packed)

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        values = self.values(self._read(files, first, rows))
        return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        if self.type.name not in _TRITS or self.row % blocks.GROUP:
            return super().groups(files, first, rows)
        packed = self._read(files, first, rows)
        trits, d = _TRITS[self.type.name](packed)
        wide = (
            np.repeat(d, self.type.block // blocks.GROUP) if self.type.block > blocks.GROUP else d
        )
        if self.type.block < blocks.GROUP:
            return lowbit.analyse(self.values(packed).reshape(-1).view(np.uint32), "F32")
        scale, codes = wide.astype(np.float32), trits.reshape(-1, blocks.GROUP)
        if self.type is types.Q1_0:
            found = lowbit.from_codes(codes >> np.uint8(1), 2 * scale, -scale, 1)
        else:
            found = lowbit.from_codes(codes, scale, -scale, 2)
        if found is not None:
            return found
        return lowbit.analyse(self.values(packed).reshape(-1).view(np.uint32), "F32")

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        if len(self.shape) != 2:  # vectors and convolutions are never stored in blocks
            return types.F32, True
        return _NEAREST.get(self.type.name, (self.type, True))

    def blocks(self, files: Files, first: int, rows: int) -> np.ndarray:
        packed = self._read(files, first, rows)
        target, _ = self.stored(files)
        if target is self.type:
            return packed.reshape(-1)
        if self.type is types.Q4_K:
            return _q4_1_of_q4_k(packed)
        values = self.values(packed).reshape(-1, target.block)
        return quantize.quantize(values, target.name).reshape(-1)


def _q4_1_of_q4_k(packed: np.ndarray) -> np.ndarray:
    """The same codes; only the products of scales lose what fp16 cannot hold."""
    scale, least = kquants.k4_scales(packed)
    codes = kquants.k4_codes(packed[:, 16:]).reshape(-1, types.Q4_1.block)
    d, m = scale.reshape(-1).astype(np.float16), (-least).reshape(-1).astype(np.float16)
    return blocks.pack_q4_1(codes, d, m).reshape(-1)


def is_ours(reader: gguf.Reader) -> bool:
    return reader.keys.get("general.architecture") == "bonsai"


def _tensor(path: Path, t: gguf.StoredTensor) -> Tensor:
    kind = t.type.name
    if kind in RAW_DTYPE or kind not in _READABLE:
        return Entry(path, t.name, kind, t.shape, t.offset, t.nbytes)
    return Blocked(path, t.name, t.shape, t.type, t.offset, t.nbytes)


def _refuse_unreadable(tensors: dict[str, Tensor]) -> None:
    for t in tensors.values():
        if isinstance(t, Entry) and t.dtype not in RAW_DTYPE and not t.dtype.startswith("I"):
            raise ConvertError(
                f"{t.where}: {t.dtype} is not read; take a file with {', '.join(sorted(_READABLE))}"
            )


def _notes(kind: str, path: Path, tensors: dict[str, Tensor]) -> list[str]:
    k2 = [t for t in tensors.values() if t.format == "Q2_K" and len(t.shape) == 2]
    notes = []
    if kind == "transformer" and k2:
        notes.append(
            f"{path.name}: {len(k2)} matrices are Q2_K, which cannot hold ternary weights: as a "
            "stand-in for Bonsai it is some 22 % off (relative L2 error), and the model file keeps "
            f"that error. The exact weights are in {UNPACKED}"
        )
    return notes


def open_tensors(
    kind: str, path: Path, reader: gguf.Reader
) -> tuple[str, Path, dict[str, Tensor], list[str]]:
    """(layout, path, tensors under the model's names, notes) of one part of a foreign file."""
    rotated = next((k for k in reader.keys if k.startswith("prism.hadamard.")), None)
    if rotated:
        raise ConvertError(
            f"{path}: key '{rotated}': its weights are Hadamard-rotated, which this engine does "
            "not compute"
        )
    everything = {n: _tensor(path, t) for n, t in reader.tensors.items()}
    chosen = rename.select(kind, everything, path)
    if chosen is None:
        first = ", ".join(list(everything)[:3])
        raise ConvertError(f"{path}: no {kind.replace('_', ' ')} in it (its tensors: {first}, ...)")
    whose, tensors = rename.to_model_names(kind, chosen)
    if is_ours(reader):
        whose = "a model file"
        tensors = rename.convolutions(tensors) if kind == "vae" else tensors
    _refuse_unreadable(tensors)
    layout = "GGUF" + (f", {whose}" if whose else "")
    return layout, path, tensors, _notes(kind, path, tensors)
