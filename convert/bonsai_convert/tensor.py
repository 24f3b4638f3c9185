# SPDX-License-Identifier: Apache-2.0
"""One tensor of a source, whatever its layout.

Everything behind this class works on rows: [first, first + rows) of a matrix, so that memory is
bounded by a piece. A vector is one row; a convolution is always taken as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import blocks, floats, lowbit
from . import ggml_types as types
from .errors import ConvertError

if TYPE_CHECKING:
    from .ggml_types import TensorType
    from .safetensors import Files


@dataclass(frozen=True)
class Loss:
    """What storing rows in another type cost."""

    largest: float  # difference from the source's values
    square_error: float
    square_norm: float  # of the source's values

    @staticmethod
    def between(stored: np.ndarray, source: np.ndarray) -> Loss:
        difference = stored - source
        return Loss(
            float(max(difference.max(initial=0), -difference.min(initial=0))),
            float(np.vdot(difference, difference)),
            float(np.vdot(source, source)),
        )


class Tensor:
    """What a layout's module provides for each tensor; names and shapes are those of the model."""

    path: Path  # of the file, for messages
    name: str  # in the source, for messages
    shape: tuple[int, ...]  # [N, K], convolutions [Cout, Cin, kh, kw]
    nbytes: int  # taken in the source
    format: str  # for people: 'BF16', 'MLX 2-bit g128', ...
    dtype: str  # float type of what `raw` gives: 'BF16', 'F16' or 'F32'

    @property
    def row(self) -> int:
        """Weights in a row."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def where(self) -> str:
        return f"{self.path}: tensor '{self.name}'"

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        """Values by the source's own arithmetic, as flat bit patterns (floats.py), all finite."""
        raise NotImplementedError

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        """Codes and scales of low-bit weights; `stats` says whether they are that."""
        return lowbit.analyse(self.raw(files, first, rows), self.dtype)

    def sample(self, count: int) -> list[tuple[int, int]]:
        """(first, rows) of up to `count` rows spread over the tensor, cheap to read."""
        picked = np.unique(np.linspace(0, self.rows - 1, min(self.rows, count)).astype(np.int64))
        return [(int(r), 1) for r in picked]

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        """The type that holds it best, and whether that is exact, where it is no low-bit one."""
        return types.BY_NAME[self.dtype], True

    def blocks(self, files: Files, first: int, rows: int) -> np.ndarray:
        """Flat bytes of those rows, where `stored` names a type with blocks."""
        raise NotImplementedError

    def packed(
        self, files: Files, first: int, rows: int, kind: TensorType
    ) -> tuple[np.ndarray, int]:
        """`blocks`, which are of this kind, and how many weights are 0."""
        data = self.blocks(files, first, rows)
        values = blocks.decode(kind, data)
        return data, values.size - int(np.count_nonzero(values))

    def loss(self, files: Files, first: int, rows: int, kind: TensorType, data: np.ndarray) -> Loss:
        """Of `packed`, whose bytes are `data`, where `stored` calls it inexact."""
        source = floats.to_f32(self.raw(files, first, rows), self.dtype)
        return Loss.between(blocks.decode(kind, data), source)


@dataclass(frozen=True)
class Stacked(Tensor):
    """Rows of other tensors of one layout, one after the other, under another name."""

    name: str
    parts: tuple[tuple[Tensor, int, int], ...]  # (tensor, first row, rows)

    @property
    def path(self) -> Path:
        return self.parts[0][0].path

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(n for _, _, n in self.parts), *self.parts[0][0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes // t.rows * n for t, _, n in self.parts)

    @property
    def format(self) -> str:
        return self.parts[0][0].format

    @property
    def dtype(self) -> str:
        return self.parts[0][0].dtype

    def _spans(self, first: int, rows: int):
        """(tensor, first row, rows) that make up the rows asked for."""
        for tensor, start, count in self.parts:
            low, high = max(first, 0), min(first + rows, count)
            if low < high:
                yield tensor, start + low, high - low
            first -= count

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        return np.concatenate([t.raw(files, a, n) for t, a, n in self._spans(first, rows)])

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        found = [t.groups(files, a, n) for t, a, n in self._spans(first, rows)]
        stats = lowbit.GroupStats()
        for g in found:
            stats.add(g.stats)
        trits, scales = (np.concatenate(p) for p in zip(*((g.trits, g.scales) for g in found)))
        return lowbit.Groups(trits, scales, stats)

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        kinds = [t.stored(files) for t, _, _ in self.parts]
        if any(kind is not kinds[0][0] for kind, _ in kinds):
            raise ConvertError(f"{self.where}: its parts have different types")
        return kinds[0][0], all(exact for _, exact in kinds)

    def packed(
        self, files: Files, first: int, rows: int, kind: TensorType
    ) -> tuple[np.ndarray, int]:
        found = [t.packed(files, a, n, kind) for t, a, n in self._spans(first, rows)]
        return np.concatenate([data for data, _ in found]), sum(zeros for _, zeros in found)


@dataclass
class Codes:
    """Rows of an affine tensor: w = q scale + bias. q uint8 [rows, K], the others float32
    [rows, K / group]."""

    q: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class Affine(Tensor):
    """Unsigned codes with a scale and a bias for each run of `group` columns."""

    bits: int
    group: int
    dtype = "F32"

    def codes(self, files: Files, first: int, rows: int) -> Codes:
        raise NotImplementedError

    def pairs(self, files: Files, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Scales and biases alone, as `codes` gives them."""
        raise NotImplementedError

    def values(self, c: Codes) -> np.ndarray:
        """float32 [rows, K]. The product is exact, so fused multiply-adds give the same."""
        q = c.q.reshape(*c.scale.shape, self.group).astype(np.float32)
        return (q * c.scale[..., None] + c.bias[..., None]).reshape(c.q.shape)

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        return self.values(self.codes(files, first, rows)).reshape(-1).view(np.uint32)

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        if self.group != blocks.GROUP or self.bits > 2:
            return super().groups(files, first, rows)
        c = self.codes(files, first, rows)
        q = c.q.reshape(-1, blocks.GROUP)
        found = lowbit.from_codes(q, c.scale.reshape(-1), c.bias.reshape(-1), self.bits)
        if found is not None:
            return found
        return lowbit.analyse(self.values(c).view(np.uint32), "F32")

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        if self.bits > 4 or self.group % types.Q4_1.block:
            return types.F16, False
        exact, step = True, max(1, (1 << 20) // (self.row // self.group))
        for first in range(0, self.rows, step):
            for x in self.pairs(files, first, min(step, self.rows - first)):
                if np.abs(x).max(initial=0) > 65504:
                    return types.BF16, False
                exact = exact and bool((x.astype(np.float16).astype(np.float32) == x).all())
        return types.Q4_1, exact

    def packed(
        self, files: Files, first: int, rows: int, kind: TensorType
    ) -> tuple[np.ndarray, int]:
        """Q4_1: the codes as they are, scale and bias repeated for each block of the group. The
        packed bytes are decoded again and compared."""
        c = self.codes(files, first, rows)
        q = c.q.reshape(-1, types.Q4_1.block)
        repeat = self.group // types.Q4_1.block
        d, m = (np.repeat(x.reshape(-1), repeat).astype(np.float16) for x in (c.scale, c.bias))
        data = blocks.pack_q4_1(q, d, m)
        back = blocks.unpack_q4_1(data)
        if not all(map(np.array_equal, back, (q, d, m))):
            raise AssertionError("the Q4_1 packer did not reproduce its input")
        return data.reshape(-1), _zeros(c, self.group)

    def loss(self, files: Files, first: int, rows: int, kind: TensorType, data: np.ndarray) -> Loss:
        """The codes are kept, so what scale and bias lost in fp16 tells the error of every code:
        per group, without a float for each weight."""
        c = self.codes(files, first, rows)
        q = c.q.reshape(-1, self.group)
        scale, bias = c.scale.reshape(-1), c.bias.reshape(-1)
        slope, offset = (x.astype(np.float16).astype(np.float64) - x for x in (scale, bias))
        total, squares = q.sum(1, dtype=np.uint32), (q * q).sum(1, dtype=np.uint32)  # q < 16

        def square(a: np.ndarray, b: np.ndarray) -> float:  # sum of (a q + b)^2
            a, b = a.astype(np.float64), b.astype(np.float64)
            return float((a * a * squares + 2 * a * b * total + self.group * b * b).sum())

        ends = (np.abs(slope * end + offset).max(initial=0) for end in (q.min(1), q.max(1)))
        return Loss(float(max(ends)), square(slope, offset), square(scale, bias))


def _zeros(c: Codes, group: int) -> int:
    """Weights with q scale + bias = 0: in each group at most one code gives that, or all do."""
    scale, bias = c.scale.reshape(-1), c.bias.reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.rint(-bias / scale)
    possible = (code >= 0) & (code <= 15) & (code * scale + bias == 0)
    wanted = np.where(possible, code, 255).astype(np.uint8)
    empty = int(((scale == 0) & (bias == 0)).sum()) * group
    return empty + int(np.count_nonzero(c.q.reshape(-1, group) == wanted[:, None]))


def finite(tensor: Tensor, *arrays: np.ndarray) -> None:
    """An error when float32 scales or biases hold an infinity or a NaN."""
    for x in arrays:
        if not floats.all_finite(np.ascontiguousarray(x).view(np.uint32), "F32"):
            raise ConvertError(
                f"{tensor.where}: a scale is NaN or infinity; the checkpoint is damaged: "
                "download it again"
            )


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes [n, m] of codes of 1, 2, 4 or 8 bits, the first in the lowest -> uint8 [n, codes]."""
    if bits == 8:
        return packed
    if bits == 4:
        both = np.empty((*packed.shape, 2), np.uint8)
        np.bitwise_and(packed, np.uint8(15), out=both[..., 0])
        np.right_shift(packed, np.uint8(4), out=both[..., 1])
        return both.reshape(len(packed), -1)
    if bits == 2:
        return blocks.spread2(packed).reshape(len(packed), -1)
    return np.unpackbits(packed, axis=1, bitorder="little")
