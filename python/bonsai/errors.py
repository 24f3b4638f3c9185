# SPDX-License-Identifier: Apache-2.0
"""What can go wrong: always a BonsaiError, some also the built-in exception one expects."""

from __future__ import annotations


class BonsaiError(Exception):
    """Base of all errors of the engine. The message says what to do."""


class ArgumentError(BonsaiError, ValueError):
    """A parameter is out of range."""


class FileError(BonsaiError, OSError):
    """A file cannot be opened, read or written."""


class ModelError(BonsaiError):
    """A file is damaged or not what it should be."""


class UnsupportedError(BonsaiError):
    """Valid, but not by this build, device or version."""


class OutOfMemory(BonsaiError, MemoryError):
    """There is not enough memory, or not below max_memory."""


class Cancelled(BonsaiError):
    """Drawing was stopped: the engine was closed, or another thread cancelled."""


class InternalError(BonsaiError):
    """A bug in the library. Please report it."""
