# SPDX-License-Identifier: Apache-2.0
"""Tensor types of the model file: ids, block lengths, bytes a block.

142 and 143 are the ids of one fork, unknown to stock GGUF readers; FORMAT.md lists the
collisions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    name: str
    id: int
    block: int  # weights a block; blocks run along the contiguous (input) axis
    bytes: int  # bytes a block

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of `k` weights; `k` must be a multiple of the block."""
        if k % self.block:
            raise ValueError(f"{k} columns are not a multiple of the {self.name} block")
        return k // self.block * self.bytes


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
Q4_0 = TensorType("Q4_0", 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 32, 20)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
BF16 = TensorType("BF16", 30, 1, 2)
Q1_0 = TensorType("Q1_0", 41, 128, 18)
PQ2_0 = TensorType("PQ2_0", 142, 128, 34)
PTQ1_0 = TensorType("PTQ1_0", 143, 128, 28)

# Read, so that a file holding them can be described, but never written.
TQ1_0 = TensorType("TQ1_0", 34, 256, 54)
TQ2_0 = TensorType("TQ2_0", 35, 256, 66)
Q2_0 = TensorType("Q2_0", 42, 64, 18)

ALL = (F32, F16, Q4_0, Q4_1, Q8_0, BF16, Q1_0, PQ2_0, PTQ1_0, TQ1_0, TQ2_0, Q2_0)
BY_ID = {t.id: t for t in ALL}
BY_NAME = {t.name: t for t in ALL}

# Types whose blocks hold one scale and codes -1, 0, +1 (or -1, +1).
LOW_BIT = (Q1_0, PQ2_0, PTQ1_0)
