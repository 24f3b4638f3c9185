# SPDX-License-Identifier: Apache-2.0
"""Text-to-image with 1-bit and ternary diffusion transformers.

>>> from bonsai import Engine
>>> with Engine("model.gguf") as engine:
...     engine.generate("a red apple on a blue background", seed=42).save("apple.png")
"""

from .engine import Engine
from .errors import (
    ArgumentError,
    BonsaiError,
    Cancelled,
    FileError,
    InternalError,
    ModelError,
    OutOfMemory,
    UnsupportedError,
)
from .library import (
    __version__,
    describe,
    devices,
    noise,
    pnginfo,
    read_metadata,
    self_test,
    verify,
)
from .types import DeviceInfo, ModelInfo, Progress, Step

__all__ = [
    "ArgumentError",
    "BonsaiError",
    "Cancelled",
    "DeviceInfo",
    "Engine",
    "FileError",
    "InternalError",
    "ModelError",
    "ModelInfo",
    "OutOfMemory",
    "Progress",
    "Step",
    "UnsupportedError",
    "__version__",
    "describe",
    "devices",
    "noise",
    "pnginfo",
    "read_metadata",
    "self_test",
    "verify",
]
