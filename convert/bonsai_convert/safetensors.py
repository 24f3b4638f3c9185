# SPDX-License-Identifier: Apache-2.0
"""Read safetensors files piece by piece with plain reads: resident memory stays at one piece.

Layout: u64 header length, JSON header, data. A header entry is {dtype, shape, data_offsets:
[begin, end)} relative to the data. Every number is checked against the file before it is used.
As in the format's own reader, tensors fill the data from its first byte to the last of the file.
"""

from __future__ import annotations

import math
import os
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import jsonfile
from .errors import ConvertError
from .floats import RAW_DTYPE, all_finite
from .jsonfile import brief
from .tensor import Tensor

MAX_HEADER = 1 << 24  # bytes; a thousand tensors take 0.2 MB, and parsed JSON 30 times its text
MAX_INDEX = 1 << 24
MAX_RANK = 8
MAX_NAME = 1024
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_WINDOWS = 12  # a gemlite tensor has three arrays, and threads are a window apart
_AGAIN = "download the file again (an interrupted download is the usual cause)"


@dataclass(frozen=True)
class Entry(Tensor):
    """One tensor of one file as it is stored: plain numbers, row after row."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of the first byte in the file
    nbytes: int

    @property
    def format(self) -> str:
        return self.dtype

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        return files.read(self, first * self.row, rows * self.row)


def _check_size(path: Path, size: int, head: bytes) -> int:
    """Header length of a file that starts with these 8 bytes, or an error that names the cause."""
    if head.startswith(b"version "):
        raise ConvertError(
            f"{path}: a git-lfs pointer, not the weights; run 'git lfs pull' in its directory"
        )
    if len(head) < 8:
        raise ConvertError(f"{path}: {size} bytes long, too short for safetensors; {_AGAIN}")
    length = struct.unpack("<Q", head)[0]
    if length < 2 or length > MAX_HEADER:
        raise ConvertError(
            f"{path}: header length {length}, expected 2 to {MAX_HEADER}; "
            f"this is no safetensors file, or it is damaged: {_AGAIN}"
        )
    if length > size - 8:
        raise ConvertError(
            f"{path}: header of {length} bytes, but the file ends after {size - 8}; {_AGAIN}"
        )
    return length


def _check_entry(path: Path, name: str, entry: object, data_start: int) -> Entry:
    if not name or len(name) > MAX_NAME or not jsonfile.is_plain(name):
        raise ConvertError(f"{path}: a tensor has the name {brief(name)}; {_AGAIN}")
    where = f"{path}: tensor '{name}'"
    if not isinstance(entry, dict):
        raise ConvertError(f"{where}: header entry is no object; {_AGAIN}")
    dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ConvertError(f"{where}: unknown dtype {brief(dtype)}")

    def naturals(value: object, most: int) -> bool:
        return (
            isinstance(value, list)
            and len(value) <= most
            and all(type(v) is int and 0 <= v < 1 << 48 for v in value)
        )

    if not naturals(shape, MAX_RANK):
        raise ConvertError(f"{where}: bad shape {brief(shape)}; {_AGAIN}")
    if not naturals(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ConvertError(f"{where}: bad data_offsets {brief(offsets)}; {_AGAIN}")
    nbytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise ConvertError(
            f"{where}: {dtype} {shape} needs {nbytes} bytes, "
            f"the header gives it {offsets[1] - offsets[0]}; {_AGAIN}"
        )
    return Entry(path, name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of one file, every field checked."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = _check_size(path, size, f.read(8))
            text = f.read(length)
    except OSError as e:
        raise ConvertError(f"{path}: cannot be read: {e.strerror}") from e
    if len(text) != length:
        raise ConvertError(f"{path}: became shorter while it was being read")
    try:
        header = jsonfile.parse(text)
        if not isinstance(header, dict):
            raise ValueError("it is no object")
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
            raise ValueError("'__metadata__' does not map names to texts")
    except ValueError as e:
        raise ConvertError(f"{path}: header is not valid JSON ({e}); {_AGAIN}") from e
    start = 8 + length
    entries = {name: _check_entry(path, name, e, start) for name, e in header.items()}
    end = start
    for entry in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
        if entry.offset < end:
            raise ConvertError(f"{path}: tensor '{entry.name}' overlaps its neighbour; {_AGAIN}")
        if entry.offset > end:
            raise ConvertError(
                f"{path}: {entry.offset - end} bytes before tensor '{entry.name}' belong to none; "
                + _AGAIN
            )
        end = entry.offset + entry.nbytes
    if end > size:
        raise ConvertError(
            f"{path}: half downloaded: {size} bytes, but its header describes {end}; {_AGAIN}"
        )
    if end < size:
        raise ConvertError(f"{path}: {size - end} bytes behind its last tensor; {_AGAIN}")
    return entries


def _shards_of_index(index: Path) -> dict[str, str]:
    try:
        data = jsonfile.parse(jsonfile.read_bytes(index, MAX_INDEX))
    except OSError as e:
        raise ConvertError(f"{index}: cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise ConvertError(f"{index}: no valid shard index ({e}); {_AGAIN}") from e
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    good = isinstance(weight_map, dict) and len(weight_map) > 0
    good = good and all(isinstance(v, str) for v in weight_map.values())
    for shard in set(weight_map.values()) if good else ():
        # No path may lead out of the directory.
        good = good and bool(re.fullmatch(r"[\w.-]+\.safetensors", shard, re.ASCII))
    if not good:
        raise ConvertError(f"{index}: 'weight_map' must map tensor names to file names; {_AGAIN}")
    return weight_map


def _missing_files(folder: Path, stem: str) -> ConvertError:
    there = sorted(p.name for p in folder.iterdir() if p.suffix not in (".json", ".md"))
    there = [n for n in there if not n.startswith("._")]
    expected = f"'{stem}.safetensors' or '{stem}.safetensors.index.json' with its shards"
    hint = "download the unpacked safetensors checkpoint"
    if any(re.match(re.escape(stem) + r"-\d+-of-\d+\.safetensors$", n) for n in there):
        hint = "shards are here but their index is not: download the directory again"
    elif any(n.endswith((".bin", ".pt", ".pth", ".ckpt")) for n in there):
        hint = "only safetensors is read: save the checkpoint with safe_serialization=True"
    return ConvertError(f"{folder}: expected {expected}, found {there or 'no weights'}; {hint}")


def open_component(folder: Path, stem: str) -> dict[str, Entry]:
    """All tensors of a component directory, from one file or from an index and its shards."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if not single.is_file():
            raise _missing_files(folder, stem)
        return read_header(single)
    weight_map = _shards_of_index(index)
    shards = sorted(set(weight_map.values()))
    absent = [s for s in shards if not (folder / s).is_file()]
    if absent and single.is_file():
        return read_header(single)  # an index left over from another layout
    if absent:
        raise ConvertError(
            f"{folder}: {len(absent)} of {len(shards)} shards missing: {', '.join(absent)}; "
            "download the rest (half-downloaded checkpoint)"
        )
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in read_header(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ConvertError(
                    f"{entry.path}: holds '{name}', which the index expects in "
                    f"{brief(weight_map.get(name))}; the files are from different versions: "
                    + _AGAIN
                )
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise ConvertError(
                f"{folder / shard}: {brief(name)} is in the index, not here; {_AGAIN}"
            )
    return entries


class _Window:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: object = None


class Files:
    """Open files by path, for reads from several threads (pread has no shared position)."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple, _Window] = OrderedDict()

    def window(self, key: tuple, make: Callable[[], object]) -> object:
        """What `make` gave for this key, while it is among the last few: for layouts that cannot
        be read row by row. One thread makes it, others that want the same wait."""
        with self._lock:
            window = self._windows.setdefault(key, _Window())
            self._windows.move_to_end(key)
            while len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
        with window.lock:
            if window.value is None:
                window.value = make()
            return window.value

    def read(self, entry: Entry, first: int, count: int) -> np.ndarray:
        """Elements [first, first + count) of a tensor as a raw array (see floats.py), finite."""
        dtype = RAW_DTYPE[entry.dtype]
        at = entry.offset + first * dtype.itemsize
        raw = self.read_bytes(entry.path, at, count * dtype.itemsize).view(dtype)
        if not all_finite(raw, entry.dtype):
            raise ConvertError(
                f"{entry.path}: tensor '{entry.name}' holds NaN or infinity; the checkpoint is "
                "damaged: download it again"
            )
        return raw

    def read_bytes(self, path: Path, offset: int, count: int) -> np.ndarray:
        """`count` bytes of a file from `offset`, as uint8."""
        with self._lock:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_RDONLY | _O_BINARY)
        out = np.empty(count, np.uint8)
        view = memoryview(out)
        done = 0
        while done < count:
            got = _read_at(self._fds[path], view[done:], offset + done)
            if not got:
                raise ConvertError(f"{path}: became shorter while it was being read")
            done += got
        return out

    def read_columns(
        self, entry: Entry, lines: int, line_bytes: int, first: int, count: int
    ) -> np.ndarray:
        """Bytes [first, first + count) of each of the first `lines` lines: uint8 [lines, count]."""
        out = np.empty((lines, count), np.uint8)
        if count == line_bytes:
            out[:] = self.read_bytes(entry.path, entry.offset, lines * count).reshape(lines, count)
            return out
        for i in range(lines):
            out[i] = self.read_bytes(entry.path, entry.offset + i * line_bytes + first, count)
        return out

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._windows.clear()


_O_BINARY = getattr(os, "O_BINARY", 0)

if hasattr(os, "preadv"):

    def _read_at(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

else:  # Windows: reads share the position, so they take turns
    _READ_LOCK = threading.Lock()

    def _read_at(fd: int, view: memoryview, offset: int) -> int:
        with _READ_LOCK:
            os.lseek(fd, offset, os.SEEK_SET)
            piece = os.read(fd, min(len(view), 1 << 26))
        view[: len(piece)] = piece
        return len(piece)
