# SPDX-License-Identifier: Apache-2.0
"""Move tensors from source to target in pieces, on several threads, in order.

Memory is bounded by a few pieces of _PIECE weights each, whatever the model's size. numpy does
the work outside the interpreter lock, so threads are enough.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from . import blocks, floats, lowbit, quantize
from .errors import ConvertError
from .plan import Item
from .safetensors import Files
from .tensor import Loss

_PIECE = 1 << 21  # weights: long enough outside the interpreter lock for threads to run at once


@dataclass(frozen=True)
class Piece:
    """Rows [first, first + rows) of a tensor; a convolution is always one piece."""

    item: Item
    first: int
    rows: int
    last: bool

    @property
    def source_bytes(self) -> int:
        entry = self.item.found.entry
        return self.rows * (entry.nbytes // self.item.info.rows)

    @property
    def target_bytes(self) -> int:
        return self.rows * (self.item.info.nbytes // self.item.info.rows)


class Contradiction(Exception):
    """A tensor turned out not to be of the kind that a sample of its rows showed."""


def pieces(items: list[Item]) -> Iterator[Piece]:
    for item in items:
        rows = item.info.rows
        step = rows
        if len(item.found.expected.shape) <= 2:
            step = max(1, _PIECE // item.info.row)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            yield Piece(item, first, count, first + count == rows)


def read(files: Files, piece: Piece) -> np.ndarray:
    """Raw values of a piece in the order of the target."""
    e, entry = piece.item.found.expected, piece.item.found.entry
    if len(e.shape) == 4:  # [Cout, Cin, h, w] -> [Cout, h, w, Cin]
        raw = entry.raw(files, 0, entry.rows).reshape(e.shape)
        return np.ascontiguousarray(raw.transpose(0, 2, 3, 1)).reshape(-1)
    return entry.raw(files, piece.first, piece.rows)


def _out_of_range(piece: Piece, x: np.ndarray) -> ConvertError:
    entry, kind = piece.item.found.entry, piece.item.info.type.name
    return ConvertError(
        f"{entry.path}: tensor '{entry.name}' holds {float(np.abs(x).max()):g}, too large for "
        f"{kind}; keep this part in its source type"
    )


def _plain(piece: Piece, raw: np.ndarray) -> np.ndarray:
    """Values in another type than the source's, as the bytes or numbers to store."""
    source, target = piece.item.found.entry.dtype, piece.item.info.type
    if target.name == source:
        return raw
    x = floats.to_f32(raw, source)
    if target.name == "F32":
        return x
    if target.name == "BF16":
        out = floats.to_bf16(x)
        if not floats.all_finite(out, "BF16"):
            raise _out_of_range(piece, x)
        return out
    if np.abs(x).max(initial=0) > 65504:
        raise _out_of_range(piece, x)
    if target.name == "F16":
        return x.astype(np.float16)
    return quantize.quantize(x.reshape(-1, target.block), target.name)


@dataclass(frozen=True)
class Encoded:
    """The bytes to store for a piece, and what the report says of them."""

    data: np.ndarray  # uint8
    zeros: int  # weights that are 0 in the source
    max_error: float = 0.0  # largest difference from the source's values
    square_error: float = 0.0
    square_norm: float = 0.0


def encode(files: Files, piece: Piece) -> Encoded:
    item = piece.item
    entry = item.found.entry
    if item.how == "groups":
        groups = entry.groups(files, piece.first, piece.rows)
        data = lowbit.pack_lossless(groups, item.info.type.name)
        return Encoded(data.reshape(-1), int(np.count_nonzero(groups.trits == 1)))
    if item.how == "blocks":
        data, zeros = entry.packed(files, piece.first, piece.rows, item.info.type)
        if item.exact:
            return Encoded(data, zeros)
        loss = entry.loss(files, piece.first, piece.rows, item.info.type, data)
        return Encoded(data, zeros, loss.largest, loss.square_error, loss.square_norm)
    raw = read(files, piece)
    data = np.ascontiguousarray(_plain(piece, raw)).reshape(-1).view(np.uint8)
    if item.info.type.name == entry.dtype:
        return Encoded(data, floats.count_zeros(raw, entry.dtype))
    return _measured(piece, raw, data)


def _measured(piece: Piece, raw: np.ndarray, data: np.ndarray) -> Encoded:
    """With the errors of the stored bytes against the source's values."""
    kind = piece.item.found.entry.dtype
    loss = Loss.between(blocks.decode(piece.item.info.type, data), floats.to_f32(raw, kind))
    zeros = floats.count_zeros(raw, kind)
    return Encoded(data, zeros, loss.largest, loss.square_error, loss.square_norm)


def read_and_encode(files: Files, piece: Piece) -> Encoded:
    try:
        return encode(files, piece)
    except lowbit.NotLowBit as e:
        raise Contradiction from e


def thread_count() -> int:
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:
        available = os.cpu_count() or 1
    return min(available, 16)


def keep_freed_memory() -> None:
    """Let the C library reuse the memory of a piece for the next one.

    glibc gives blocks of this size back to the system at once, and takes pages anew for each array:
    half of the time of a conversion. Freeing one large block raises its limits (mallopt(3),
    M_MMAP_THRESHOLD) to 32 MiB; elsewhere it does nothing.
    """
    np.empty((1 << 25) - (1 << 14), np.uint8)


def in_order(work: Callable, jobs: Iterator) -> Generator[tuple]:
    """(job, work(job)) in the order of jobs, a few of them computed ahead.

    An exception of a job, or closing the generator, drops what has not been started and waits for
    what has; use contextlib.closing, so that no thread reads on after a failure.
    """
    keep_freed_memory()
    threads = thread_count()
    pool = ThreadPoolExecutor(threads)
    pending: deque = deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(work, job)))
            if len(pending) > 2 * threads:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
