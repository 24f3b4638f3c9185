# SPDX-License-Identifier: Apache-2.0
"""The native library through cffi's ABI mode: load it, check that it fits, raise its errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cffi import FFI

from . import errors
from ._cdef import ABI_VERSION, CDEF

ffi = FFI()
ffi.cdef(CDEF)

_NAMES = {"win32": "bonsai.dll", "darwin": "libbonsai.dylib"}


def _library_path() -> Path:
    """$BONSAI_LIBRARY, else the file installed beside this one."""
    given = os.environ.get("BONSAI_LIBRARY")
    return (
        Path(given) if given else Path(__file__).parent / _NAMES.get(sys.platform, "libbonsai.so")
    )


def _load():
    path = _library_path()
    try:
        library = ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(
            f"cannot load the native library {path}: {error}; "
            "install bonsai again or point BONSAI_LIBRARY to libbonsai"
        ) from error
    found = library.bonsai_abi_version()
    if found != ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {found}, this package needs {ABI_VERSION}; "
            "install library and package from the same release"
        )
    return library


lib = _load()

_ERRORS = {
    lib.BONSAI_ERR_ARGUMENT: errors.ArgumentError,
    lib.BONSAI_ERR_IO: errors.FileError,
    lib.BONSAI_ERR_FORMAT: errors.ModelError,
    lib.BONSAI_ERR_UNSUPPORTED: errors.UnsupportedError,
    lib.BONSAI_ERR_MEMORY: errors.OutOfMemory,
    lib.BONSAI_ERR_CANCELLED: errors.Cancelled,
    lib.BONSAI_ERR_INTERNAL: errors.InternalError,
}


def text(pointer) -> str:
    """A C string or char array as str."""
    return ffi.string(pointer).decode("utf-8", "replace")


def check(status: int) -> None:
    """Raises what a status stands for.

    Must run on the thread of the failed call: the message is kept for each thread.
    """
    if status != lib.BONSAI_OK:
        raise _ERRORS.get(status, errors.BonsaiError)(text(lib.bonsai_last_error()))


def encode(name: str, value: str | os.PathLike) -> bytes:
    """str to what C takes. Lone surrogates pass, so that the engine itself reports invalid text."""
    try:
        value = os.fspath(value)
    except TypeError:
        raise errors.ArgumentError(f"{name}={value!r}: expected text") from None
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    if b"\0" in data:
        raise errors.ArgumentError(f"{name} contains a zero character; remove it")
    return data


def new_struct(name: str):
    """A zeroed struct that the library fills, struct_size set."""
    struct = ffi.new(f"{name} *")
    struct.struct_size = ffi.sizeof(name)
    return struct


def take_text(pointer) -> str:
    """Text that the library allocated: copied and released."""
    try:
        return text(pointer)
    finally:
        lib.bonsai_free(pointer)
