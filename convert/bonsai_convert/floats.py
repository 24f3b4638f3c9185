# SPDX-License-Identifier: Apache-2.0
"""16- and 32-bit float arrays as bit patterns: numpy has no bfloat16.

A "raw" array here is uint16 for BF16 and F16 and uint32 for F32. Sign is the top bit in all
three and, without it, a larger pattern is a larger magnitude, so magnitudes compare exactly
as integers.
"""

from __future__ import annotations

import numpy as np

RAW_DTYPE = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}
# Magnitude patterns from here on are infinities and NaNs.
FIRST_NONFINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
MAGNITUDE_MASK = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF}


def to_f32(raw: np.ndarray, kind: str) -> np.ndarray:
    """Exact float32 values of a raw array."""
    if kind == "F32":
        return raw.view(np.float32)
    if kind == "F16":
        return raw.view(np.float16).astype(np.float32)
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """bfloat16 patterns of finite float32 values, nearest, ties to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    odd = (u >> np.uint32(16)) & np.uint32(1)
    return ((u + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def all_finite(raw: np.ndarray, kind: str) -> bool:
    """False when the raw array holds an infinity or a NaN."""
    if raw.size == 0:
        return True
    mask = raw.dtype.type(MAGNITUDE_MASK[kind])
    return int((raw & mask).max()) < FIRST_NONFINITE[kind]


def count_zeros(raw: np.ndarray, kind: str) -> int:
    """How many values are 0 or -0."""
    return raw.size - int(np.count_nonzero(raw & raw.dtype.type(MAGNITUDE_MASK[kind])))
