# SPDX-License-Identifier: Apache-2.0
"""Writes .pt files as torch.save does, without torch: a ZIP of storages and a pickle."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_STORAGES = {
    "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "U8": "ByteStorage",
    "I32": "IntStorage", "I64": "LongStorage",
}  # fmt: skip


@dataclass(frozen=True)
class Global:
    """A name of a module, as a value."""

    module: str
    name: str


@dataclass(frozen=True)
class Tensor:
    key: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    offset: int = 0
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Raw:
    """Opcodes put into the pickle as they are."""

    code: bytes


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(raw)) + raw


def _tuple(items) -> bytes:
    return b"(" + b"".join(map(encode, items)) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tensor(t: Tensor) -> bytes:
    stride = t.stride
    if stride is None:
        stride = tuple(int(np.prod(t.shape[i + 1 :])) for i in range(len(t.shape)))
    storage = b"(" + _text("storage") + _global("torch", _STORAGES[t.dtype]) + _text(t.key)
    storage += _text("cpu") + _int(t.numel) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = _tuple(t.shape) + _tuple(stride) + b"\x89" + hooks
    rebuild = _global("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + storage + _int(t.offset) + shape + b"tR"


def encode(value: object) -> bytes:
    """Opcodes that leave the value on the stack."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Global):
        return _global(value.module, value.name)
    if isinstance(value, dict):
        items = b"".join(encode(k) + encode(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, tuple):
        return _tuple(value)
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _int(value)
    if isinstance(value, str):
        return _text(value)
    raise TypeError(type(value))


def pickled(value: object) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


class Writer:
    """Storages in the order in which they come, then the pickle that describes them."""

    def __init__(self, path: Path, root: str = "archive") -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._root, self._count = root, 0

    def __enter__(self) -> Writer:
        return self

    def entry(self, name: str, data) -> None:
        info = zipfile.ZipInfo(f"{self._root}/{name}")
        with self._zip.open(info, "w", force_zip64=len(data) > 1 << 31) as f:
            f.write(data)

    def tensor(self, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> Tensor:
        data = np.ascontiguousarray(data)
        key, self._count = str(self._count), self._count + 1
        self.entry(f"data/{key}", memoryview(data.reshape(-1)).cast("B") if data.size else b"")
        return Tensor(key, dtype, tuple(shape), int(np.prod(shape, dtype=np.int64)))

    def finish(self, tree: object) -> None:
        self.entry("data.pkl", pickled(tree))
        self.entry("byteorder", b"little")
        self.entry("version", b"3\n")

    def __exit__(self, *_) -> None:
        self._zip.close()
