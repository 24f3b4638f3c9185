# SPDX-License-Identifier: Apache-2.0
"""What the engine reports, as plain dataclasses. Names and units are those of bonsai.h."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ._lib import ffi, text

STAGES = ("text encoder", "denoise", "vae")


@dataclass(frozen=True)
class ModelInfo:
    """Engine.info: sizes in bytes, widths and heights in pixels."""

    name: str
    variant: str  # "ternary", "binary" or "dense"
    license: str
    source: str
    hash: str  # SHA-256 that identifies the weights
    device: str
    default_width: int
    default_height: int
    default_steps: int
    default_guidance: float
    distilled: bool  # guidance is built in, the parameter is ignored
    max_tokens: int  # T: rows of an encoded prompt
    prompt_width: int  # D: its columns
    size_multiple: int
    tensors: int
    parameters: int
    file_bytes: int
    transformer_bytes: int
    text_encoder_bytes: int
    vae_bytes: int


@dataclass(frozen=True)
class DeviceInfo:
    """One of bonsai.devices(); memory in bytes."""

    id: str  # what Engine(device=...) takes
    name: str
    features: str  # instruction set or architecture in use
    threads: int  # used when none are asked for; 0 on a GPU
    memory_total: int
    memory_free: int


@dataclass(frozen=True)
class Progress:
    """What a progress function gets, several times a step."""

    stage: str  # one of STAGES
    image: int
    images: int
    step: int  # finished
    steps: int
    fraction: float  # of this stage
    stage_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Step:
    """A finished step: what callback gets and stream() yields."""

    image_index: int  # 0 .. n - 1
    step: int  # 1 .. steps
    steps: int
    sigma: float  # noise level reached
    latents: npt.NDArray[np.float32]  # float32 [height / 16, width / 16, channels], a copy
    image: Image.Image | None  # a preview; from stream(), the finished picture in the last step
    done: bool = False  # image is the finished picture


def from_struct(cls: type, struct: Any, **given: Any) -> Any:
    """A dataclass from the members of the C struct with the same names."""
    values = dict(given)
    for field in fields(cls):
        if field.name in values:
            continue
        value = getattr(struct, field.name)
        if isinstance(value, ffi.CData):
            value = text(value)
        values[field.name] = bool(value) if field.type == "bool" else value
    return cls(**values)


def picture(rgb: Any, width: int, height: int) -> Image.Image:
    """A picture of Pillow's own from the library's pixels."""
    return Image.frombytes("RGB", (width, height), bytes(ffi.buffer(rgb, width * height * 3)))
