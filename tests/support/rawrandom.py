# SPDX-License-Identifier: Apache-2.0
"""Random arrays that are the same on every machine and with every numpy version.

numpy promises to keep the raw stream of a bit generator, but not what its distributions make of
it, and log() or cos() differ in the last bit between processors. So everything here is integer
arithmetic on raw Philox words, followed by correctly rounded IEEE operations.
"""

from __future__ import annotations

import hashlib

import numpy as np

# Standard deviation of the sum of four integers drawn evenly from 0..65535.
_SUM_STD = ((65536**2 - 1) / 3.0) ** 0.5
_SUM_MEAN = 2 * 65535


def words(seed: int, name: str, count: int) -> np.ndarray:
    """`count` uint64 words, a function of (seed, name) only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    return np.random.Philox(key=key).random_raw(count)


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """float64 in [0, 1) on the 2^-32 grid."""
    return (words(seed, name, count) >> np.uint64(32)).astype(np.float64) * 2.0**-32


def octets(seed: int, name: str, count: int) -> np.ndarray:
    """`count` even uint8 values."""
    return words(seed, name, -(-count // 8)).view(np.uint8)[:count]


def bell(seed: int, name: str, count: int) -> np.ndarray:
    """float64, mean 0, deviation 1, nearly normal: four 16-bit lanes of one word added up.

    The tails end at 3.46, which suits weights: no single draw dominates a row.
    """
    lanes = words(seed, name, count).view(np.uint16).reshape(-1, 4)
    total = lanes.sum(axis=1, dtype=np.int32)
    return (total - _SUM_MEAN) * (1.0 / _SUM_STD)


def signs(seed: int, name: str, count: int) -> np.ndarray:
    """`count` values of -1 or +1 as int8, one raw bit each."""
    bits = np.unpackbits(octets(seed, name, -(-count // 8)), count=count)
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)
