# SPDX-License-Identifier: Apache-2.0
"""Read .pt files without torch: a ZIP of uncompressed storages and a pickle that describes them.

    <root>/data.pkl      tensors by name, see torchpickle.py
    <root>/data/<key>    the bytes of a storage
    <root>/byteorder     "little"

Only the archive's directory and the pickle are read here; weights are read in place, like those of
a safetensors file.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from . import torchpickle
from .errors import ConvertError
from .jsonfile import brief, is_plain, open_regular
from .safetensors import _ITEM_BYTES, MAX_NAME, Entry
from .torchpickle import Refused, TorchTensor

MAX_DIRECTORY = 1 << 24  # bytes; a thousand tensors take 0.1 MB
MAX_PICKLE = 1 << 24
_AGAIN = "download the file again (an interrupted download is the usual cause)"
MAGIC = b"PK\3\4"


@dataclass
class TorchFile:
    """Tensors by dotted name ('module.W_q'), and everything else that is not nested deeper."""

    entries: dict[str, Entry] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)


class _Bounded:
    """A file for zipfile: whatever length a directory claims, no more than that is read at once."""

    def __init__(self, file) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        if n > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {n} bytes")
        return self._file.read(n if n >= 0 else MAX_DIRECTORY)


class _Archive:
    """Where each entry's bytes are, every number checked against the file."""

    def __init__(self, path: Path, file) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        try:
            infos = zipfile.ZipFile(_Bounded(file)).infolist()
        except (
            zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error,
            IndexError, OSError,
        ) as e:  # fmt: skip
            raise self.fail(f"no readable ZIP archive ({str(e)[:80]!r}); {_AGAIN}") from e
        self.spans: dict[str, tuple[int, int]] = {}
        for info in infos:
            self._add(info)
        end, before = 0, ""
        for name, (start, size) in sorted(self.spans.items(), key=lambda s: s[1]):
            if start < end:
                raise self.fail(f"entries {brief(before)} and {brief(name)} overlap; {_AGAIN}")
            end, before = start + size, name

    def fail(self, text: str) -> ConvertError:
        return ConvertError(f"{self.path}: {text}")

    def _add(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        if name in self.spans or not is_plain(name):
            raise self.fail(f"entry {brief(name)}: no name, or there twice; {_AGAIN}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self.fail(
                f"entry {brief(name)} is compressed or encrypted; torch.save stores plain bytes: "
                "this is no checkpoint, or was packed again"
            )
        # Name and extra field of the entry itself may differ in length from the directory's.
        self.file.seek(max(info.header_offset, 0))
        head = self.file.read(30)
        if info.header_offset < 0 or len(head) != 30 or head[:4] != MAGIC:
            raise self.fail(f"entry {brief(name)} is not where the directory says; {_AGAIN}")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if info.file_size != info.compress_size or info.file_size > self.size - start:
            raise self.fail(
                f"entry {brief(name)} of {info.file_size} bytes at {start}, the file has "
                f"{self.size}; {_AGAIN}"
            )
        self.spans[name] = (start, info.file_size)

    def read(self, name: str, limit: int) -> bytes:
        start, size = self.spans[name]
        if size > limit:
            raise self.fail(f"entry {brief(name)} has {size} bytes, expected at most {limit}")
        self.file.seek(start)
        data = self.file.read(size)
        if len(data) != size:
            raise self.fail("became shorter while it was being read")
        return data


def _entry(archive: _Archive, root: str, name: str, t: TorchTensor) -> Entry:
    if not name or len(name) > MAX_NAME or not is_plain(name):
        raise archive.fail(f"a tensor has the name {brief(name)}; {_AGAIN}")
    where = f"tensor '{name}'"
    span = archive.spans.get(f"{root}data/{t.storage.key}")
    item = _ITEM_BYTES[t.storage.dtype]
    if span is None or span[1] != t.storage.count * item:
        raise archive.fail(
            f"{where}: its storage {brief(t.storage.key)} of {t.storage.count} numbers is "
            f"{'missing' if span is None else f'{span[1]} bytes long'}; {_AGAIN}"
        )
    expected = 1
    for length, step in zip(reversed(t.shape), reversed(t.stride)):
        if length != 1 and step != expected and math.prod(t.shape):
            raise archive.fail(f"{where}: a strided view of its storage; save a contiguous copy")
        expected *= length
    count = math.prod(t.shape)
    if t.offset + count > t.storage.count:
        raise archive.fail(
            f"{where}: {list(t.shape)} from element {t.offset} on, but its storage has "
            f"{t.storage.count}; {_AGAIN}"
        )
    offset = span[0] + t.offset * item
    return Entry(archive.path, name, t.storage.dtype, t.shape, offset, count * item)


def _collect(archive: _Archive, root: str, tree: object) -> TorchFile:
    if not isinstance(tree, dict):
        raise archive.fail("holds no dict of tensors; expected a state dict")
    found = TorchFile()

    def add(name: str, value: object) -> None:
        if name in found.entries or name in found.values:
            raise archive.fail(f"{brief(name)} occurs twice; {_AGAIN}")
        if isinstance(value, TorchTensor):
            found.entries[name] = _entry(archive, root, name, value)
        else:
            found.values[name] = value

    for name, value in tree.items():
        if isinstance(value, dict):
            for leaf, inner in value.items():
                add(f"{name}.{leaf}", inner)
        else:
            add(name, value)
    return found


def read(path: Path) -> TorchFile:
    """All tensors of one file; nothing in it is executed."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            archive = _Archive(path, file)
            pickles = [n for n in archive.spans if n == "data.pkl" or n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise archive.fail(
                    f"{len(pickles)} entries named data.pkl, expected one: not written by "
                    "torch.save"
                )
            root = pickles[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.spans and archive.read(order, 16) != b"little":
                raise archive.fail("written on a big-endian machine; save it on another one")
            tree = torchpickle.load(archive.read(pickles[0], MAX_PICKLE))
            return _collect(archive, root, tree)
    except Refused as e:
        raise ConvertError(
            f"{path}: its pickle is refused: {e}; a file of weights holds tensors and nothing "
            "else: take it from its publisher, or use safetensors"
        ) from e
    except OSError as e:
        raise ConvertError(f"{path}: cannot be read: {e.strerror}") from e
