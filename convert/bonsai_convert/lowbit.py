# SPDX-License-Identifier: Apache-2.0
"""Recover codes and scales of low-bit weights from their bit patterns, and prove it.

A low-bit matrix stores s * {-1, 0, +1} (ternary) or s * {-1, +1} (binary) as ordinary floats,
one s for each run of 128 inputs of a row. In such a group every magnitude is 0 or exactly the
largest one, so s is read off, not estimated: a mean is biased by the zeros and can be a rounding
away. Negative zeros are zeros. An all-zero group has no recoverable scale and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import blocks, floats
from .blocks import GROUP


@dataclass
class GroupStats:
    """What the groups of a tensor, or of a part of it, look like."""

    groups: int = 0
    zero: int = 0  # all zero
    bad: int = 0  # more than one non-zero magnitude: not low-bit
    mixed: int = 0  # good, holding zeros and non-zeros: cannot be binary
    inexact: int = 0  # good, but the scale is no fp16 number
    first_bad: int = -1  # index of the first bad or inexact group

    def add(self, other: GroupStats) -> None:
        if self.first_bad < 0 <= other.first_bad:
            self.first_bad = self.groups + other.first_bad
        self.groups += other.groups
        self.zero += other.zero
        self.bad += other.bad
        self.mixed += other.mixed
        self.inexact += other.inexact

    @property
    def kind(self) -> str:
        """'ternary', 'binary', 'zero' (fits either), 'damaged' or 'dense'."""
        unfit = self.bad + self.inexact
        if unfit == 0:
            if self.zero == self.groups:
                return "zero"
            return "ternary" if self.mixed else "binary"
        # By chance a dense group never has 128 equal magnitudes, so a tensor in which many groups
        # do was low-bit before something touched it.
        good = self.groups - self.zero - self.bad - self.inexact
        return "damaged" if 2 * good >= self.groups - self.zero else "dense"


class NotLowBit(Exception):
    """The part of a tensor just read does not fit the kind it was taken for."""


@dataclass
class Groups:
    """Decoded low-bit groups: trits uint8 [n, 128] (0, 1, 2 for -1, 0, +1), scales fp16 [n]."""

    trits: np.ndarray
    scales: np.ndarray
    stats: GroupStats


def analyse(raw: np.ndarray, kind: str) -> Groups:
    """Decode a raw array [..., 128 g]; meaningful where `stats` counts no bad group."""
    u = raw.reshape(-1, GROUP)
    magnitude = u & u.dtype.type(floats.MAGNITUDE_MASK[kind])
    top = magnitude.max(axis=1)
    nonzero = magnitude != 0
    unequal = magnitude != top[:, None]
    unequal &= nonzero
    bad = unequal.any(axis=1)
    is_zero = top == 0
    mixed = ~nonzero.all(axis=1) & ~is_zero & ~bad

    value = floats.to_f32(top, kind)
    with np.errstate(over="ignore"):
        scales = value.astype(np.float16)
    inexact = (scales.astype(np.float32) != value) & ~bad
    unfit = bad | inexact

    sign_bit = u.dtype.type(1 << (8 * u.dtype.itemsize - 1))
    negative = u > sign_bit  # strictly: the sign bit alone is a negative zero
    trits = nonzero.view(np.uint8) + np.uint8(1)
    trits -= negative.view(np.uint8) << np.uint8(1)
    stats = GroupStats(
        groups=len(u),
        zero=int(is_zero.sum()),
        bad=int(bad.sum()),
        mixed=int(mixed.sum()),
        inexact=int(inexact.sum()),
        first_bad=int(unfit.argmax()) if unfit.any() else -1,
    )
    return Groups(trits, scales, stats)


def from_codes(q: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int) -> Groups | None:
    """Groups of packed codes with w = q scale + bias: q uint8 [n, 128], the others float32 [n].

    Takes what writers of low-bit checkpoints store, q in 0..2 with bias = -scale or q in 0..1 with
    2 bias = -scale; None when a group is anything else, whose values then have to decide.
    """
    value = np.abs(bias)
    is_zero = bias == 0
    mixed = np.zeros(len(q), bool)
    if bits == 2:
        if not np.array_equal(bias, -scale):
            return None
        if q.max(initial=0) > 2 and ((q > 2).any(axis=1) & ~is_zero).any():
            return None
        zeros = q == 1
        is_zero |= zeros.all(axis=1)
        mixed = zeros.any(axis=1) & ~is_zero
        trits = q
    else:
        if not np.array_equal(bias + scale, -bias):
            return None
        trits = q << np.uint8(1)
    flipped = scale < 0
    if flipped.any():
        trits = np.where(flipped[:, None], np.uint8(2) - trits, trits)
    if is_zero.any():  # one form for all layouts: scale 0, codes 0
        trits = np.where(is_zero[:, None], np.uint8(1), trits)
        value = np.where(is_zero, np.float32(0), value)
    with np.errstate(over="ignore"):
        scales = value.astype(np.float16)
    inexact = scales.astype(np.float32) != value
    stats = GroupStats(
        groups=len(q),
        zero=int(is_zero.sum()),
        mixed=int(mixed.sum()),
        inexact=int(inexact.sum()),
        first_bad=int(inexact.argmax()) if inexact.any() else -1,
    )
    return Groups(trits, scales, stats)


def _pack_q4_0(trits: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Ternary codes as 7, 8 and 9, for programs whose types have no ternary one."""
    return blocks.pack_q4_0((trits + np.uint8(7)).reshape(-1, 32), np.repeat(d, 4)).reshape(
        len(d), -1
    )


def _unpack_q4_0(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, d = blocks.unpack_q4_0(packed.reshape(-1, 18))
    if not (d.reshape(-1, 4) == d.reshape(-1, 4)[:, :1]).all():
        raise AssertionError("the blocks of a group have different scales")
    return (q - np.uint8(7)).reshape(-1, GROUP), d[::4]


_PACK = blocks.PACK_TRITS | {"Q4_0": _pack_q4_0}
_UNPACK = blocks.UNPACK_TRITS | {"Q4_0": _unpack_q4_0}


def pack_lossless(groups: Groups, type_name: str) -> np.ndarray:
    """Pack low-bit weights and prove the result; raises NotLowBit when they do not fit.

    `groups` are known to be the source's numbers bit for bit, and the packed bytes are decoded
    again here by code independent of the packer.
    """
    stats = groups.stats
    if stats.bad or stats.inexact or (type_name == "Q1_0" and stats.mixed):
        raise NotLowBit
    packed = _PACK[type_name](groups.trits, groups.scales)
    if not decodes_to(packed, type_name, groups):
        raise AssertionError(f"the {type_name} packer did not reproduce its input")
    return packed


def decodes_to(packed: np.ndarray, type_name: str, groups: Groups) -> bool:
    """True when packed blocks decode to exactly these groups."""
    trits, scales = _UNPACK[type_name](packed)
    if not np.array_equal(scales, groups.scales):
        return False
    if np.array_equal(trits, groups.trits):
        return True
    # Scale 0 makes the codes meaningless (a one-bit code has no zero).
    equal = (trits == groups.trits).all(axis=1) | (scales == 0)
    return bool(equal.all())
