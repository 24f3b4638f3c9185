# SPDX-License-Identifier: Apache-2.0
"""Pack and unpack the block types, codes in and codes out; nothing here rounds.

Layouts (FORMAT.md has them in full), d and m being fp16, n the number of blocks:
    Q8_0    d, 32 int8                               w = q d
    Q4_0    d, 16 bytes, low nibbles first           w = (q - 8) d
    Q4_1    d, m, 16 bytes                           w = q d + m
    Q1_0    d, 16 bytes, bit j & 7 of byte j >> 3    w = +d or -d
    PQ2_0   d, 32 bytes, 2 bits a weight, low first  w = (q - 1) d
    PTQ1_0  24 + 2 bytes of base-3 digits, d         w = (q - 1) d

Trits (values 0, 1, 2 for -1, 0, +1) live one to a byte until they are packed, and several are
handled at once as lanes of a wider integer: no lane ever carries into its neighbour.
"""

from __future__ import annotations

import numpy as np

from . import floats
from .ggml_types import TensorType

GROUP = 128  # weights in one low-bit block

# Five trits, the first the most significant, as v in 0..242 are stored as ceil(v 256 / 243): digit
# n then comes out as ((byte 3^n mod 256) 3) >> 8, without a division.
_TRIT_BYTE = ((np.arange(243, dtype=np.uint32) * 256 + 242) // 243).astype(np.uint8)
# The two bytes of qh hold four trits; a zero fifth digit fills them up.
_TRIT_BYTE4 = np.array([_TRIT_BYTE[3 * v] for v in range(81)], np.uint8)
# One byte of 2-bit codes as four lanes of a uint32.
_SPREAD2 = sum(
    ((np.arange(256, dtype=np.uint32) >> np.uint32(2 * i)) & np.uint32(3)) << np.uint32(8 * i)
    for i in range(4)
)


def _put_f16(out: np.ndarray, offset: int, d: np.ndarray) -> None:
    out[:, offset : offset + 2] = np.ascontiguousarray(d, "<f2").view(np.uint8).reshape(-1, 2)


def _get_f16(blocks: np.ndarray, offset: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").reshape(-1)


def pack_q8_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """q int8 [n, 32], d fp16 [n] -> bytes [n, 34]."""
    out = np.empty((len(d), 34), np.uint8)
    _put_f16(out, 0, d)
    out[:, 2:] = q.view(np.uint8)
    return out


def unpack_q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return blocks[:, 2:].copy().view(np.int8), _get_f16(blocks, 0)


# Blocks of 4-bit types as records; whole columns of eight codes each are handled at once.
_Q4_0 = np.dtype([("d", "<f2"), ("s", "<u8", 2)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("s", "<u8", 2)])
_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)


def _put_nibbles(s: np.ndarray, q: np.ndarray) -> None:
    """Codes 0..15 [n, 32]: weights 0..15 become the low, 16..31 the high nibbles."""
    lanes = np.ascontiguousarray(q).view("<u8")
    for i in range(2):
        s[:, i] = lanes[:, i] | (lanes[:, i + 2] << np.uint64(4))


def _from_nibbles(s: np.ndarray) -> np.ndarray:
    lanes = np.empty((len(s), 4), "<u8")
    for i in range(2):
        column = s[:, i]
        lanes[:, i] = column & _LOW
        lanes[:, i + 2] = (column >> np.uint64(4)) & _LOW
    return lanes.view(np.uint8)


def _records(blocks: np.ndarray, kind: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(blocks).reshape(-1).view(kind)


def pack_q4_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """q uint8 0..15 [n, 32], d fp16 [n] -> bytes [n, 18]."""
    out = np.empty(len(d), _Q4_0)
    out["d"] = d
    _put_nibbles(out["s"], q)
    return out.view(np.uint8).reshape(-1, 18)


def unpack_q4_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    records = _records(blocks, _Q4_0)
    return _from_nibbles(records["s"]), records["d"].copy()


def pack_q4_1(q: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    """q uint8 0..15 [n, 32], d and m fp16 [n] -> bytes [n, 20]."""
    out = np.empty(len(d), _Q4_1)
    out["d"], out["m"] = d, m
    _put_nibbles(out["s"], q)
    return out.view(np.uint8).reshape(-1, 20)


def unpack_q4_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    records = _records(blocks, _Q4_1)
    return _from_nibbles(records["s"]), records["d"].copy(), records["m"].copy()


def pack_q1_0(trits: np.ndarray, d: np.ndarray) -> np.ndarray:
    """trits uint8 [n, 128] without any 1 (except where d is 0), d fp16 [n] -> bytes [n, 18]."""
    out = np.empty((len(d), 18), np.uint8)
    _put_f16(out, 0, d)
    out[:, 2:] = np.packbits(trits >> np.uint8(1), axis=1, bitorder="little")
    return out


def unpack_q1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return bits << np.uint8(1), _get_f16(blocks, 0)


def pack_pq2_0(trits: np.ndarray, d: np.ndarray) -> np.ndarray:
    """trits uint8 [n, 128], d fp16 [n] -> bytes [n, 34]."""
    out = np.empty((len(d), 34), np.uint8)
    _put_f16(out, 0, d)
    lanes = np.ascontiguousarray(trits).view("<u4")  # four codes b0..b3 in bytes 0..3
    lanes = lanes | (lanes >> np.uint32(6))  # byte 0 = b0 | b1 << 2
    lanes |= lanes >> np.uint32(12)  # byte 0 |= b2 << 4 | b3 << 6
    out[:, 2:] = lanes.astype(np.uint8)
    return out


def spread2(packed: np.ndarray) -> np.ndarray:
    """Bytes of four 2-bit codes each, the first in the lowest bits -> one byte a code."""
    return _SPREAD2[packed].astype("<u4", copy=False).view(np.uint8)


def unpack_pq2_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return spread2(blocks[:, 2:]).reshape(-1, GROUP), _get_f16(blocks, 0)


def pack_ptq1_0(trits: np.ndarray, d: np.ndarray) -> np.ndarray:
    """trits uint8 [n, 128], d fp16 [n] -> bytes [n, 28].

    Byte i of 0..15 holds weights i + 16 n (n = 0..4), byte 16 + i of 16..23 weights 80 + i + 8 n,
    byte 24 + h weights 120 + h + 2 n (n = 0..3).
    """
    n = len(d)
    trits = np.ascontiguousarray(trits)
    lanes = trits.view("<u8")  # [n, 16], eight weights each
    values = np.empty((n, 3), "<u8")
    for column, (first, step) in enumerate(((0, 2), (1, 2), (10, 1))):
        v = lanes[:, first] * np.uint64(3)
        for i in range(1, 4):
            v += lanes[:, first + i * step]
            v *= np.uint64(3)
        v += lanes[:, first + 4 * step]
        values[:, column] = v
    out = np.empty((n, 28), np.uint8)
    out[:, :24] = _TRIT_BYTE[values.view(np.uint8)]
    tail = lanes[:, 15:].view("<u2")  # [n, 4], two weights each
    v = ((tail[:, 0] * np.uint16(3) + tail[:, 1]) * np.uint16(3) + tail[:, 2]) * np.uint16(3)
    v += tail[:, 3]
    out[:, 24:26] = _TRIT_BYTE4[np.ascontiguousarray(v, "<u2").view(np.uint8).reshape(n, 2)]
    _put_f16(out, 26, d)
    return out


# 16 + 8 bytes of five digits, 2 of four; as wide as they go into one register.
_PTQ1_0 = np.dtype([("wide", "<u8", 2), ("half", "<u8", 1), ("tail", "<u2", 1), ("d", "<f2")])


def unpack_ptq1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes as the engine does, by multiplying in 8 bits; shares no table with the packer."""
    records = _records(blocks, _PTQ1_0)
    trits = np.empty((len(records), GROUP), np.uint8)
    for name, first, digits in (("wide", 0, 5), ("half", 80, 5), ("tail", 120, 4)):
        byte = np.ascontiguousarray(records[name])
        item = byte.dtype
        width = byte.shape[1] * item.itemsize
        lanes = trits.view(item)
        byte = byte.view(np.uint8)
        for i in range(digits):
            # (byte 3) >> 8 is the number of thirds of 256 below the byte.
            digit = (byte >= 86).view(np.uint8) + (byte >= 171).view(np.uint8)
            at = (first + i * width) // item.itemsize
            for j, column in enumerate(digit.view(item).T):
                lanes[:, at + j] = column
            byte = byte * np.uint8(3)
    return trits, records["d"].copy()


PACK_TRITS = {"Q1_0": pack_q1_0, "PQ2_0": pack_pq2_0, "PTQ1_0": pack_ptq1_0}
UNPACK_TRITS = {"Q1_0": unpack_q1_0, "PQ2_0": unpack_pq2_0, "PTQ1_0": unpack_ptq1_0}


def dequantize(type_name: str, blocks: np.ndarray) -> np.ndarray:
    """Bytes [n, block bytes] -> float32 [n, block weights]."""
    if type_name == "Q4_1":
        q, d, m = unpack_q4_1(blocks)
        values = q.astype(np.float32)
        values *= d.astype(np.float32)[:, None]
        values += m.astype(np.float32)[:, None]
        return values
    if type_name == "Q8_0":
        (q, d), middle = unpack_q8_0(blocks), 0
    elif type_name == "Q4_0":
        (q, d), middle = unpack_q4_0(blocks), 8
    else:
        (q, d), middle = UNPACK_TRITS[type_name](blocks), 1
    values = q.astype(np.float32)
    values -= np.float32(middle)
    values *= d.astype(np.float32)[:, None]
    return values


def decode(kind: TensorType, stored: np.ndarray) -> np.ndarray:
    """Flat float32 values of stored bytes of any type."""
    if kind.name in floats.RAW_DTYPE:
        return floats.to_f32(stored.view(floats.RAW_DTYPE[kind.name]), kind.name)
    return dequantize(kind.name, stored.reshape(-1, kind.bytes)).reshape(-1)
