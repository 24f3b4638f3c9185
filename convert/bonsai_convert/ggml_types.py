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

# Other programs' types: read where blocks.py or kquants.py decodes them, never written.
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q2_K = TensorType("Q2_K", 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)
I8 = TensorType("I8", 24, 1, 1)
I16 = TensorType("I16", 25, 1, 2)
I32 = TensorType("I32", 26, 1, 4)
I64 = TensorType("I64", 27, 1, 8)
F64 = TensorType("F64", 28, 1, 8)
TQ1_0 = TensorType("TQ1_0", 34, 256, 54)
TQ2_0 = TensorType("TQ2_0", 35, 256, 66)
Q2_0 = TensorType("Q2_0", 42, 64, 18)

OURS = (F32, F16, Q4_0, Q4_1, Q8_0, BF16, Q1_0, PQ2_0, PTQ1_0)
FOREIGN = (
    Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, I8, I16, I32, I64, F64, TQ1_0, TQ2_0, Q2_0,
)  # fmt: skip
ALL = OURS + FOREIGN
BY_ID = {t.id: t for t in ALL}
BY_NAME = {t.name: t for t in ALL}

# Types whose blocks hold one scale and codes -1, 0, +1 (or -1, +1).
LOW_BIT = (Q1_0, PQ2_0, PTQ1_0)
