# SPDX-License-Identifier: Apache-2.0
"""GGUF v3, little-endian: a streaming writer and a bounded reader.

The reader refuses whatever the engine's reader (engine/src/core/gguf.cpp) refuses, and some more:
tests/data/hostile holds the cases that both are held to.

File: "GGUF", u32 version, u64 tensor count, u64 key count; the keys; a record for each tensor
(name, dims with the contiguous one first, type id, offset); padding; the tensors, each padded.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import ggml_types
from .errors import ConvertError
from .ggml_types import TensorType
from .jsonfile import brief, is_plain, open_regular

ALIGNMENT = 32
MAGIC = b"GGUF"
HASH_KEY = "bonsai.tensor_sha256"
MAX_NAME = 63  # bytes; stock readers keep names in 64 with a NUL
# Limits of the reader, those of the engine.
_MAX_HEADER = 1 << 27
_MAX_COUNT = 1 << 16  # of keys, of tensors
_MAX_ARRAY = 1 << 22
_MAX_READ_NAME = 65535
_MAX_ELEMENTS = 1 << 40
_ALIGNMENTS = [1 << i for i in range(17)]  # of foreign files; ours have ALIGNMENT

_U8, _I8, _U16, _I16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64, _F64 = range(13)
_SCALARS = {
    _U8: "<B", _I8: "<b", _U16: "<H", _I16: "<h", _U32: "<I", _I32: "<i",
    _F32: "<f", _BOOL: "<?", _U64: "<Q", _I64: "<q", _F64: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A key's value with its GGUF type; `element` is the element type of an array."""

    type: int
    value: object
    element: int = -1


def u32(v: int) -> Value:
    return Value(_U32, v)


def f32(v: float) -> Value:
    return Value(_F32, v)


def boolean(v: bool) -> Value:
    return Value(_BOOL, v)


def string(v: str) -> Value:
    return Value(_STRING, v)


def u32_array(v: Iterable[int]) -> Value:
    return Value(_ARRAY, list(v), _U32)


def i32_array(v: Iterable[int]) -> Value:
    return Value(_ARRAY, list(v), _I32)


def string_array(v: Iterable[str]) -> Value:
    return Value(_ARRAY, list(v), _STRING)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as stored. `shape` is in numpy order: the contiguous axis comes last."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def row(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.type.row_bytes(self.row)


def padded(n: int, alignment: int = ALIGNMENT) -> int:
    return -(-n // alignment) * alignment


def _encode_string(s: str) -> bytes:
    try:
        raw = s.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConvertError(f"{brief(s)} has no UTF-8 form, so it cannot be stored") from e
    return struct.pack("<Q", len(raw)) + raw


def _encode_value(v: Value) -> bytes:
    if v.type == _STRING:
        return _encode_string(v.value)
    if v.type != _ARRAY:
        return struct.pack(_SCALARS[v.type], v.value)
    head = struct.pack("<IQ", v.element, len(v.value))
    if v.element == _STRING:
        return head + b"".join(map(_encode_string, v.value))
    return head + struct.pack("<" + str(len(v.value)) + _SCALARS[v.element][1], *v.value)


def encode_header(keys: dict[str, Value], tensors: list[TensorInfo]) -> tuple[bytes, int]:
    """Everything before the tensor data, padded, and the offset of the first tensor's hash.

    The hashes are filled with zeros: they are known only after the data has been written, and
    being of fixed length they are then patched in place.
    """
    blank = string_array(["0" * 64] * len(tensors))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys) + 1)]
    for key, value in keys.items():
        parts += [_encode_string(key), struct.pack("<I", value.type), _encode_value(value)]
    parts += [_encode_string(HASH_KEY), struct.pack("<I", blank.type)]
    first_hash = sum(map(len, parts)) + 12 + 8  # array header, length of the first string
    parts.append(_encode_value(blank))
    offset, names = 0, set()
    for t in tensors:
        if len(t.name.encode()) > MAX_NAME or t.name in names or not 1 <= len(t.shape) <= 4:
            raise ConvertError(f"tensor '{t.name}' {list(t.shape)} cannot be stored in GGUF")
        names.add(t.name)
        dims = tuple(reversed(t.shape))
        parts.append(_encode_string(t.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, t.type.id, offset))
        offset += padded(t.nbytes)
    head = b"".join(parts)
    return head + bytes(padded(len(head)) - len(head)), first_hash


class Writer:
    """Writes beside the target under another name; only `commit` gives the file its name.

    Use as a context manager: leaving it without `commit`, by whatever exception, removes what has
    been written. The file is made by `start`, inside the block: an interrupt that strikes while a
    block is being entered would skip its cleanup.
    """

    def __init__(self, path: Path, keys: dict[str, Value], tensors: list[TensorInfo]) -> None:
        self.path = path
        self._temp = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._tensors = tensors
        self._keys = keys
        self._hashes: list[str] = []
        self._file = None

    def __enter__(self) -> Writer:
        return self

    def start(self) -> None:
        """Make the file and write its header."""
        head, self._first_hash = encode_header(self._keys, self._tensors)
        self._file = open(self._temp, "xb", buffering=0)
        self._write(head)
        self._start_tensor()

    def _write(self, data) -> None:
        view = memoryview(data).cast("B")
        while view:  # a raw file may take less than asked, for example when the disk is full
            view = view[self._file.write(view) :]

    def _start_tensor(self) -> None:
        self._sha = hashlib.sha256()
        self._done = 0

    def write(self, data: np.ndarray) -> None:
        """Append bytes of the current tensor; tensors come in the order of their records."""
        view = memoryview(np.ascontiguousarray(data)).cast("B")
        self._sha.update(view)
        self._write(view)
        self._done += len(view)

    def end_tensor(self) -> None:
        info = self._tensors[len(self._hashes)]
        if self._done != info.nbytes:
            raise AssertionError(f"{info.name}: wrote {self._done} bytes of {info.nbytes}")
        self._write(bytes(padded(info.nbytes) - info.nbytes))
        self._hashes.append(self._sha.hexdigest())
        self._start_tensor()

    def commit(self) -> None:
        """Fill in the hashes, flush to the disk, give the file its name."""
        if len(self._hashes) != len(self._tensors):
            raise AssertionError("not all tensors were written")
        self._file.seek(self._first_hash)
        self._write("".join(self._hashes[:1]).encode())
        for h in self._hashes[1:]:
            self._write(_encode_string(h))
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        os.replace(self._temp, self.path)
        _sync_directory(self.path.parent)

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
        self._temp.unlink(missing_ok=True)  # gone after `commit`


def _sync_directory(folder: Path) -> None:
    """Make a rename durable; not every system can open a directory."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor of an existing file, with the offset of its bytes in the file."""

    offset: int = 0


class _Cursor:
    """Bounded reads from the header; any lie about a length ends in ConvertError."""

    def __init__(self, file, size: int, path: Path) -> None:
        self.file, self.size, self.path, self.at = file, size, path, 0

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            raise ConvertError(
                f"{self.path}: damaged or cut off: {n} bytes expected at {self.at}, "
                f"the file has {self.size}; convert the source again"
            )
        if n > _MAX_HEADER - self.at:
            raise ConvertError(f"{self.path}: its header has more than {_MAX_HEADER} bytes")
        data = self.file.read(n)
        if len(data) != n:
            raise ConvertError(f"{self.path}: became shorter while it was being read")
        self.at += n
        return data

    def unpack(self, form: str):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        try:
            return self.take(self.unpack("<Q")).decode("utf-8")
        except UnicodeDecodeError as e:
            raise ConvertError(f"{self.path}: a string at {self.at} is not UTF-8") from e

    def name(self, what: str) -> str:
        """Of a key or a tensor: shown in messages."""
        name = self.string()
        if not name or len(name.encode()) > _MAX_READ_NAME or not is_plain(name):
            raise ConvertError(f"{self.path}: {what} {brief(name)} at {self.at} is no name")
        return name

    def value(self) -> object:
        kind = self.unpack("<I")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])
        if kind != _ARRAY:
            raise ConvertError(f"{self.path}: unknown value type {kind} at {self.at}")
        element, count = self.unpack("<I"), self.unpack("<Q")
        if count > _MAX_ARRAY:
            raise ConvertError(f"{self.path}: an array of {count} elements at {self.at}")
        if element == _STRING:
            return [self.string() for _ in range(count)]
        if element not in _SCALARS:
            raise ConvertError(f"{self.path}: unknown element type {element} at {self.at}")
        size = struct.calcsize(_SCALARS[element])
        raw = self.take(size * count)
        return list(struct.unpack(f"<{count}{_SCALARS[element][1]}", raw))


class Reader:
    """Keys and tensors of a GGUF file; `keys` maps to plain Python values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb", opener=open_regular) as file:
                self.size = os.fstat(file.fileno()).st_size
                self._read(_Cursor(file, self.size, path))
        except OSError as e:
            raise ConvertError(f"{path}: cannot be read: {e.strerror}") from e

    def _read(self, cursor: _Cursor) -> None:
        path = self.path
        if self.size < 24:
            raise ConvertError(f"{path}: too short for a GGUF file")
        magic, version = cursor.take(4), cursor.unpack("<I")
        if magic != MAGIC or version != 3:
            raise ConvertError(f"{path}: no GGUF v3 file (starts with {magic!r}, {version})")
        tensors, keys = cursor.unpack("<Q"), cursor.unpack("<Q")
        if max(tensors, keys) > _MAX_COUNT:
            raise ConvertError(f"{path}: {tensors} tensors, {keys} keys: damaged")
        self.keys: dict[str, object] = {}
        for _ in range(keys):
            name = cursor.name("key")
            if name in self.keys:
                raise ConvertError(f"{path}: key '{name}' occurs twice")
            self.keys[name] = cursor.value()
        alignment = self.keys.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment not in _ALIGNMENTS:
            raise ConvertError(
                f"{path}: alignment {brief(alignment)}, expected a power of two up to "
                f"{max(_ALIGNMENTS)}"
            )
        records = [self._record(cursor) for _ in range(tensors)]
        start = padded(cursor.at, alignment)
        records = settle_type_42(records, max(self.size - start, 0), alignment)
        self.tensors = self._place(records, start, alignment)

    def _record(self, cursor: _Cursor) -> tuple[TensorInfo, int]:
        name, rank = cursor.name("tensor"), cursor.unpack("<I")
        if not 1 <= rank <= 4:
            raise ConvertError(f"{self.path}: tensor '{name}' has {rank} dimensions")
        dims = [cursor.unpack("<Q") for _ in range(rank)]
        type_id, offset = cursor.unpack("<I"), cursor.unpack("<Q")
        kind = ggml_types.BY_ID.get(type_id)
        if kind is None:
            raise ConvertError(f"{self.path}: tensor '{name}' has unknown type {type_id}")
        if min(dims) < 1 or math.prod(dims) > _MAX_ELEMENTS or dims[0] % kind.block:
            raise ConvertError(f"{self.path}: tensor '{name}' has shape {dims} as {kind.name}")
        return TensorInfo(name, tuple(reversed(dims)), kind), offset

    def _place(self, records: list, start: int, alignment: int) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        expected = 0
        for info, offset in records:
            if offset != expected:
                raise ConvertError(
                    f"{self.path}: tensor '{info.name}' at {offset}, expected {expected}"
                )
            if start + offset + info.nbytes > self.size:
                raise ConvertError(
                    f"{self.path}: tensor '{info.name}' ends at {start + offset + info.nbytes}, "
                    f"the file at {self.size}: cut off; copy or convert it again"
                )
            if info.name in tensors:
                raise ConvertError(f"{self.path}: tensor '{info.name}' occurs twice")
            tensors[info.name] = StoredTensor(info.name, info.shape, info.type, start + offset)
            expected = offset + padded(info.nbytes, alignment)
        return tensors


def settle_type_42(
    records: list[tuple[TensorInfo, int]], size: int, alignment: int
) -> list[tuple[TensorInfo, int]]:
    """Give 42 its meaning: blocks of 64 weights in 18 bytes, or those that old files of a fork
    call so, 128 in 34, now PQ2_0. The space up to the next tensor tells, and where padding hides
    the difference, the other tensors of the file do."""
    old = ggml_types.PQ2_0
    ends = [offset for _, offset in records[1:]] + [size]
    fork = False
    for i, ((info, offset), end) in enumerate(zip(records, ends)):
        if info.type is ggml_types.Q2_0 and info.row % old.block == 0:
            need = info.rows * old.row_bytes(info.row)
            fits = end - offset == padded(need, alignment)
            fits = fits or (i + 1 == len(records) and end - offset == need)
            fork = fork or (fits and end - offset < info.nbytes)
    if not fork:
        return records
    return [
        (
            TensorInfo(t.name, t.shape, old)
            if t.type is ggml_types.Q2_0 and t.row % old.block == 0
            else t,
            offset,
        )
        for t, offset in records
    ]
