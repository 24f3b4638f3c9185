# SPDX-License-Identifier: Apache-2.0
"""Decode block types that other programs write and the model file does not hold; never pack them.

Layouts, d, m, dmin being fp16 and n the number of blocks:
    Q5_0   d, 32 high bits, 16 bytes of low nibbles         w = (q - 16) d
    Q5_1   d, m, 32 high bits, 16 bytes                     w = q d + m
    Q2_K   16 bytes of scale | min << 4, 64 bytes, d, dmin  w = q (d scale) - dmin min
    Q4_K   d, dmin, 8 pairs of 6 bits, 128 bytes            the same, 32 weights a pair
    Q5_K   the same with 32 bytes of high bits before the nibbles
    Q6_K   128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d   w = (q - 32) d scale
    Q2_0   d, 16 bytes of 2-bit codes                       w = (q - 1) d, 64 weights
    TQ2_0  2 x 32 bytes of 2-bit codes, d                   w = (q - 1) d, 256 weights
    TQ1_0  48 + 4 bytes of base-3 digits, d                 w = (q - 1) d, 256 weights
All products of codes and scales are exact in float32.
"""

from __future__ import annotations

import numpy as np

from .blocks import _get_f16, spread2

_ONE = np.uint8(1)


def _f32(blocks: np.ndarray, offset: int) -> np.ndarray:
    return _get_f16(blocks, offset).astype(np.float32)


def _high_bits(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=1)


def q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 6:]) | _high_bits(blocks[:, 2:6])
    return (q.astype(np.float32) - np.float32(16)) * _f32(blocks, 0)[:, None]


def q5_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 8:]) | _high_bits(blocks[:, 4:8])
    return q.astype(np.float32) * _f32(blocks, 0)[:, None] + _f32(blocks, 2)[:, None]


def q2_k(blocks: np.ndarray) -> np.ndarray:
    n = len(blocks)
    qs = blocks[:, 16:80].reshape(n, 2, 1, 32)  # two halves; four bit planes make 128 weights each
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    q = ((qs >> shifts) & np.uint8(3)).reshape(n, 16, 16).astype(np.float32)
    scale = (blocks[:, :16] & np.uint8(15)).astype(np.float32) * _f32(blocks, 80)[:, None]
    least = (blocks[:, :16] >> np.uint8(4)).astype(np.float32) * _f32(blocks, 82)[:, None]
    return (q * scale[:, :, None] - least[:, :, None]).reshape(n, 256)


def k4_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of the 8 sub-blocks of Q4_K and Q5_K: float32 [n, 8] each."""
    s = blocks[:, 4:16]
    low, high, both = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    six, four = np.uint8(6), np.uint8(4)
    scale = np.concatenate(
        [low & np.uint8(63), (both & np.uint8(15)) | (low >> six << four)], axis=1
    )
    least = np.concatenate([high & np.uint8(63), (both >> four) | (high >> six << four)], axis=1)
    d, dmin = _f32(blocks, 0)[:, None], _f32(blocks, 2)[:, None]
    return scale.astype(np.float32) * d, least.astype(np.float32) * dmin


def k4_codes(qs: np.ndarray) -> np.ndarray:
    """128 bytes -> uint8 [n, 8, 32]: of each 32 bytes the low nibbles, then the high ones."""
    qs = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2).reshape(-1, 8, 32)


def q4_k(blocks: np.ndarray) -> np.ndarray:
    scale, least = k4_scales(blocks)
    q = k4_codes(blocks[:, 16:]).astype(np.float32)
    return (q * scale[:, :, None] - least[:, :, None]).reshape(-1, 256)


def q5_k(blocks: np.ndarray) -> np.ndarray:
    scale, least = k4_scales(blocks)
    bits = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    q = (k4_codes(blocks[:, 48:]) | ((bits & _ONE) << np.uint8(4))).astype(np.float32)
    return (q * scale[:, :, None] - least[:, :, None]).reshape(-1, 256)


def q6_k(blocks: np.ndarray) -> np.ndarray:
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 64)
    low = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=2)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(n, 2, 1, 32) >> shifts) & np.uint8(3)
    q = low.reshape(n, 256) | (high.reshape(n, 256) << np.uint8(4))
    scale = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    scale *= _f32(blocks, 208)[:, None]
    return ((q.astype(np.float32) - np.float32(32)).reshape(n, 16, 16) * scale[:, :, None]).reshape(
        n, 256
    )


def unpack_q2_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return spread2(blocks[:, 2:]).reshape(-1, 64), _get_f16(blocks, 0)


def unpack_tq2_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    q = (blocks[:, :64].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    return q.reshape(-1, 256), _get_f16(blocks, 64)


def unpack_tq1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for start, width, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        byte = blocks[:, start : start + width]
        for i in range(digits):
            digit = (byte * np.uint8(3**i)).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            parts.append(digit.astype(np.uint8))
    return np.concatenate(parts, axis=1), _get_f16(blocks, 52)


DEQUANTIZE = {
    "Q5_0": q5_0, "Q5_1": q5_1, "Q2_K": q2_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
UNPACK_TRITS = {"Q2_0": unpack_q2_0, "TQ1_0": unpack_tq1_0, "TQ2_0": unpack_tq2_0}
# Byte offsets of the fp16 numbers of a block.
F16_FIELDS = {
    "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "Q2_0": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "Q8_0": (0,), "Q4_0": (0,),
    "Q4_1": (0, 2), "Q1_0": (0,), "PQ2_0": (0,), "PTQ1_0": (26,),
}  # fmt: skip
