# SPDX-License-Identifier: Apache-2.0
"""MLX's affine quantisation in safetensors: X.weight U32 [N, K bits / 32], X.scales and X.biases
[N, K / group], w = q scale + bias, codes along K with the first in the lowest bits of a word.

Low-bit models use it with scale s, bias -s, codes 0..2 (ternary) or scale 2 s, bias -s, codes 0..1
(binary). MLX's own quantiser cannot make the former of ternary weights: see _refuse_ruined.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import floats, lowbit
from .blocks import GROUP
from .errors import ConvertError
from .safetensors import Entry, Files
from .tensor import Affine, Codes, Tensor, finite, unpack

# (bits, group) by bits x group / 32, which is what the shapes say; more than one pair is possible
# and the settings decide, or the first of these.
_BITS = (1, 2, 4, 8)
_USUAL = {"transformer": ((1, 128), (2, 128)), "text_encoder": ((4, 64), (8, 64), (2, 64))}


@dataclass(frozen=True)
class MlxTensor(Affine):
    shape: tuple[int, ...]
    bits: int
    group: int
    weight: Entry
    scales: Entry
    biases: Entry

    @property
    def path(self) -> Path:
        return self.weight.path

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes

    @property
    def format(self) -> str:
        return f"MLX {self.bits}-bit g{self.group}"

    def pairs(self, files: Files, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for entry in (self.scales, self.biases):
            x = floats.to_f32(entry.raw(files, first, rows), entry.dtype)
            found.append(x.reshape(rows, -1))
        finite(self, *found)
        return found[0], found[1]

    def codes(self, files: Files, first: int, rows: int) -> Codes:
        line = self.weight.nbytes // self.rows
        at = self.weight.offset + first * line
        packed = files.read_bytes(self.path, at, rows * line).reshape(rows, line)
        scale, bias = self.pairs(files, first, rows)
        return Codes(unpack(packed, self.bits), scale, bias)

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        found = super().groups(files, first, rows)
        if found.stats.bad and self.bits == 2 and self.group == GROUP:
            self._refuse_ruined(self.codes(files, first, rows))
        return found

    def _refuse_ruined(self, c: Codes) -> None:
        """mx.quantize turns ternary weights into the levels s, 0, -s / 2: scale -s / 2, bias s."""
        q = c.q.reshape(-1, GROUP)
        scale, bias = c.scale.reshape(-1), c.bias.reshape(-1)
        # Level q = 1 stands for s / 2, which no weight has; other data uses it.
        ruined = (bias == -2 * scale) & (scale != 0) & ~(q == 1).any(axis=1)
        if 2 * ruined.sum() > len(q):
            raise ConvertError(
                f"{self.where}: quantised again with mx.quantize, which has no ternary levels: "
                "the negative weights have half their size. Nothing can bring them back: take "
                "the published MLX files, or the unpacked ones"
            )


def _shape_of_codes(kind: str, weight: Entry, scales: Entry, said: tuple) -> tuple[int, int]:
    """(bits, group): by the settings beside the file, else by what is usual."""
    words, groups = weight.shape[1], scales.shape[1]
    possible = [
        (bits, 32 * words // groups // bits)
        for bits in _BITS
        if groups and 32 * words % (groups * bits) == 0
    ]
    possible = [p for p in possible if p[1] in (32, 64, 128)]
    for bits, group in possible:
        if said == (bits, group):
            return said
    if said != (None, None):
        raise ConvertError(
            f"{weight.where}: {words} words and {groups} scales a row are not {said[0]} bits in "
            f"groups of {said[1]}, as the settings beside the file say; download both again"
        )
    for usual in _USUAL.get(kind, ()):
        if usual in possible:
            return usual
    if len(possible) != 1:
        raise ConvertError(
            f"{weight.where}: {words} words and {groups} scales a row fit "
            f"{possible or 'no known bits and group'}; quantization_config.json (bits, group_size) "
            "must be beside the file"
        )
    return possible[0]


def is_mlx(entries: dict[str, Entry]) -> bool:
    return any(
        e.dtype == "U32" and name.endswith(".weight") and f"{name[:-7]}.scales" in entries
        for name, e in entries.items()
    )


def tensors(kind: str, entries: dict[str, Entry], said: tuple) -> dict[str, Tensor]:
    """`said`: (bits, group) of the settings beside the file, or (None, None)."""
    found: dict[str, Tensor] = {}
    used = set()
    for name, weight in entries.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or weight.dtype != "U32":
            continue
        pair = [entries.get(f"{module}.{leaf}") for leaf in ("scales", "biases")]
        if None in pair:
            missing = "scales" if pair[0] is None else "biases"
            raise ConvertError(
                f"{weight.where}: packed, but '{module}.{missing}' is not beside it; only MLX's "
                "affine mode is read"
            )
        scales, biases = pair
        good = len(weight.shape) == len(scales.shape) == 2 and scales.shape == biases.shape
        good = good and scales.shape[0] == weight.shape[0] > 0
        if not good or {scales.dtype, biases.dtype} - floats.RAW_DTYPE.keys():
            raise ConvertError(
                f"{weight.where}: {list(weight.shape)} with scales {scales.dtype} "
                f"{list(scales.shape)} and biases {biases.dtype} {list(biases.shape)}; expected "
                "floats, one pair a group"
            )
        bits, group = _shape_of_codes(kind, weight, scales, said)
        shape = (weight.shape[0], scales.shape[1] * group)
        found[name] = MlxTensor(shape, bits, group, weight, scales, biases)
        used |= {weight.name, scales.name, biases.name}
    return found | {n: e for n, e in entries.items() if n not in used}
