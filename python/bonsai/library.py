# SPDX-License-Identifier: Apache-2.0
"""What needs no open model: devices, noise, model files, metadata of pictures."""

from __future__ import annotations

import json
import logging
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from ._arguments import integer
from ._lib import check, encode, ffi, lib, new_struct, take_text, text
from .errors import ArgumentError, FileError
from .types import DeviceInfo, from_struct

_log = logging.getLogger("bonsai")

__version__: str = text(lib.bonsai_version())


def find_model(model: str | os.PathLike[str] | None = None) -> str | os.PathLike[str]:
    """model, else $BONSAI_MODEL, else an installed one, else the demo model (the log says so).

    "hub:owner/name" is fetched and converted once, with progress on stderr."""
    if model == "":
        raise ArgumentError("model='': expected the path of a GGUF file or hub:owner/name")
    given = model if model is not None else os.environ.get("BONSAI_MODEL")
    if isinstance(given, str) and given.startswith("hub:"):
        return _hub_model(given)
    if given:
        return given
    installed = sorted(_installed_models(), key=lambda path: (_is_demo(path), path.name))
    if not installed:
        raise ArgumentError(
            "no model: pass the path of a GGUF file or set BONSAI_MODEL; bonsai-convert makes one "
            "from a Hugging Face checkpoint"
        )
    if _is_demo(installed[0]):
        _log.warning(
            "using the small demo model (emoji and shapes, 128 to 384 pixels); Engine(path) takes "
            "another, and `bonsai-convert prism-ml/bonsai-image-ternary-4B-unpacked -o MODEL.gguf` "
            "makes the real one"
        )
    return installed[0]


def _hub_model(spec: str) -> Path:
    try:
        from bonsai_convert import cache
        from bonsai_convert.errors import ConvertError
    except ImportError as e:
        raise FileError(f"{spec}: the converter is not installed ({e})") from e
    try:
        return cache.ensure(spec)
    except (ConvertError, OSError) as e:
        raise FileError(str(e)) from e


def _installed_models() -> Iterator[Path]:
    """*.gguf in share/bonsai of this Python, of the user's packages, or of the source tree."""
    prefixes = {Path(sys.prefix), Path(sysconfig.get_path("data")), Path(site.getuserbase())}
    for prefix in prefixes:
        yield from (prefix / "share" / "bonsai").glob("*.gguf")
    yield from (Path(__file__).resolve().parents[2] / "models").glob("*.gguf")


def _is_demo(path: Path) -> bool:
    return path.name.startswith("seedling-")


def devices() -> list[DeviceInfo]:
    """All devices of this machine, the preferred one first."""
    found = []
    for index in range(lib.bonsai_device_count()):
        info = new_struct("bonsai_device_info")
        check(lib.bonsai_device_get_info(index, info))
        found.append(from_struct(DeviceInfo, info))
    return found


def self_test(device: str | None = None, threads: int = 0) -> dict[str, Any]:
    """Whether this machine computes rightly: processor, devices and checks, "failures" counted."""
    name = ffi.new("char[]", encode("device", device)) if device else ffi.NULL
    params = ffi.new("bonsai_open_params *")
    lib.bonsai_open_params_init(params)
    params.device, params.threads = name, integer("threads", threads, 0, 4096)
    out = ffi.new("char **")
    check(lib.bonsai_self_test(params, 1, out, ffi.NULL))
    return json.loads(take_text(out[0]))


def noise(seed: int, count: int) -> npt.NDArray[np.float32]:
    """float32 standard normals, those of torch.randn with a CPU generator; count is at least 16."""
    out = np.empty(integer("count", count, 16, 2**48), np.float32)
    check(
        lib.bonsai_noise(
            integer("seed", seed, -(2**63), 2**64 - 1) % 2**64,
            ffi.from_buffer("float[]", out),
            out.size,
        )
    )
    return out


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a GGUF file holds, ours or not."""
    out = ffi.new("char **")
    check(lib.bonsai_file_describe(encode("path", path), 1, out))
    return json.loads(take_text(out[0]))


def verify(path: str | os.PathLike[str]) -> None:
    """Compares all tensors with their hashes; ModelError names the first that differs."""
    raised: list[BaseException] = []

    def keep(_type: Any, error: BaseException, _traceback: Any) -> None:
        raised.append(error)

    # Runs Python between the tensors, so that Ctrl-C stops the check.
    @ffi.callback("bonsai_verify_callback", error=1, onerror=keep)
    def go_on(_fraction: float, _tensor: Any, _user: Any) -> int:
        return 0

    status = lib.bonsai_file_verify(encode("path", path), go_on, ffi.NULL)
    if raised:
        raise raised[0]
    check(status)


def read_metadata(path: str | os.PathLike[str]) -> str:
    """The lines "key: value" of a PNG that bonsai drew."""
    out = ffi.new("char **")
    check(lib.bonsai_png_read_metadata(encode("path", path), out))
    return take_text(out[0])


def pnginfo(picture: Image.Image) -> PngImagePlugin.PngInfo:
    """The settings of a picture for `picture.save(path, pnginfo=...)`; Pillow drops them else."""
    info = PngImagePlugin.PngInfo()
    if "bonsai" in picture.info:
        info.add_itxt("bonsai", picture.info["bonsai"])
    return info
