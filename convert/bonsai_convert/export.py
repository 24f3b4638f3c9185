# SPDX-License-Identifier: Apache-2.0
"""--to: write a checkpoint out again, as a folder that other programs read.

What every layout needs: safetensors written piece by piece, the folder's own files, and a folder
that has its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import floats, lowbit, stream
from .config import Pipeline
from .errors import ConvertError
from .layout import Expected, Found, text_tensors
from .progress import Progress, size_text
from .safetensors import Files
from .tensor import Tensor

_PIECE = 1 << 20  # weights
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4, "I64": 8}


@dataclass(frozen=True)
class Out:
    """A tensor of a safetensors file: its bytes come in pieces of rows, made on several threads."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    make: Callable[[int, int], np.ndarray]  # (first row, rows) -> its numbers
    step: int  # rows a piece

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * _ITEM_BYTES[self.dtype]


@dataclass
class Written:
    """What a layout has to say at the end."""

    lines: list[str] = field(default_factory=list)
    strict: bool = False  # rounding is an error
    rounded: Counter = field(default_factory=Counter)  # tensors by (source format, target type)

    def round(self, tensor: Tensor, target: str) -> None:
        """Note that the target cannot hold a tensor exactly."""
        if self.strict:
            raise ConvertError(
                f"{tensor.where}: {tensor.format} does not fit exactly into {target}; leave out "
                "--strict, or write a layout that has such blocks"
            )
        self.rounded[tensor.format, target] += 1


def _pieces(outs: list[Out]) -> Iterator[tuple[Out, int, int]]:
    for out in outs:
        for first in range(0, out.rows, out.step):
            yield out, first, min(out.step, out.rows - first)


def write_safetensors(path: Path, outs: list[Out], progress: Progress) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for out in outs:
        end = at + out.nbytes
        header[out.name] = {"dtype": out.dtype, "shape": out.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)

    def work(job):
        out, first, rows = job
        return np.ascontiguousarray(out.make(first, rows)).reshape(-1).view(np.uint8)

    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        with closing(stream.in_order(work, _pieces(outs))) as results:
            for (out, _, _), data in results:
                file.write(data)
                progress.advance(len(data), out.name)
        if file.tell() != 8 + len(text) + at:
            raise AssertionError(f"{path}: {file.tell()} bytes, expected {8 + len(text) + at}")


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def step_of(tensor: Tensor) -> int:
    """Rows of a tensor that make a piece; a convolution is one."""
    return max(1, _PIECE // tensor.row) if len(tensor.shape) == 2 else tensor.rows


@contextmanager
def new_folder(folder: Path, need: int) -> Iterator[Path]:
    """A folder that gets its name when everything is in it, and leaves nothing otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConvertError(f"{folder}: exists and is not empty; give the name of a new folder")
    parent = folder.resolve().parent
    if not parent.is_dir():
        raise ConvertError(f"{parent}: no such directory; create it first")
    free = shutil.disk_usage(parent).free
    if free < need:
        raise ConvertError(
            f"{parent}: {size_text(free)} free, {size_text(need)} needed; free some space or "
            "write elsewhere"
        )
    temporary = parent / f".{folder.name}.{os.getpid()}.part"
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def scales_fit_bf16(files: Files, tensor: Tensor) -> bool:
    """Whether the scales of a low-bit tensor are bfloat16 numbers; fp16 ones they always are."""
    for first in range(0, tensor.rows, step_of(tensor)):
        scales = tensor.groups(files, first, min(step_of(tensor), tensor.rows - first)).scales
        wide = scales.astype(np.float32)
        if not np.array_equal(floats.to_f32(floats.to_bf16(wide), "BF16"), wide):
            return False
    return True


def low_bit_kind(files: Files, found: Found) -> str | None:
    """'ternary' or 'binary' of a block linear whose groups all are, None of any other tensor."""
    tensor, stats = found.entry, lowbit.GroupStats()
    if found.expected.role != "block" or tensor.row % 128:
        return None
    for first, rows in tensor.sample(32):
        stats.add(tensor.groups(files, first, rows).stats)
    if stats.kind not in ("ternary", "binary", "zero"):
        return None
    stats = lowbit.GroupStats()
    step = step_of(tensor)
    for first in range(0, tensor.rows, step):
        stats.add(tensor.groups(files, first, min(step, tensor.rows - first)).stats)
    if stats.kind == "zero":
        return "ternary"
    return stats.kind if stats.kind in ("ternary", "binary") else None


def plain(
    files: Files, found: Found, name: str, written: Written, shape: tuple[int, ...] | None = None
) -> Out:
    """A tensor as the floats it is, or as bfloat16 where it has blocks (named as rounded when that
    loses something)."""
    tensor = found.entry
    dtype, kind = tensor.dtype, None
    if tensor.format != dtype:
        kind = low_bit_kind(files, found)
        if kind is not None:
            dtype = "BF16" if scales_fit_bf16(files, tensor) else "F16"
        else:
            dtype = "BF16"
            written.round(tensor, dtype)

    def make(first: int, rows: int) -> np.ndarray:
        raw = tensor.raw(files, first, rows)
        if dtype == tensor.dtype:
            return raw
        x = floats.to_f32(raw, tensor.dtype)
        return x.astype(np.float16) if dtype == "F16" else floats.to_bf16(x)

    return Out(name, dtype, shape or found.expected.shape, tensor.rows, make, step_of(tensor))


@dataclass(frozen=True)
class Constant(Tensor):
    """A tensor of one value that the source does not have."""

    name: str
    shape: tuple[int, ...]
    value: float
    path = Path("constant")
    dtype = format = "BF16"
    nbytes = 0

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        return np.full(rows * self.row, floats.to_bf16(np.float32([self.value]))[0], np.uint16)


def idle_layer(pipeline: Pipeline, count: int = 1) -> list[Found]:
    """One more layer of the text encoder (or `count`), which adds nothing, and the final norm:
    transformers takes the last hidden state after that norm, and what is read here comes before
    it."""
    e = pipeline.text
    if e.final_norm:
        return []
    found = []
    first = [t for t in text_tensors(e, "model.") if t.source.startswith("model.layers.0.")]
    for layer in range(e.layers, e.layers + count):
        for t in first:
            source = t.source.replace("layers.0.", f"layers.{layer}.")
            target = t.target.replace("blk.0.", f"blk.{layer}.")
            value = 1.0 if len(t.shape) == 1 else 0.0
            found.append(Found(Expected(source, t.shape, target, t.role),
                               Constant(source, t.shape, value)))  # fmt: skip
    norm = Expected("model.norm.weight", (e.width,), "te.output_norm.weight", "vector")
    return [*found, Found(norm, Constant(norm.source, norm.shape, 1.0))]
