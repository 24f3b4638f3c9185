# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls, checked where C would take a wrong type for something else."""

from __future__ import annotations

import operator
import secrets
from typing import Any

from ._lib import ffi, lib
from .errors import ArgumentError

DTYPES = ("f32", "f16", "bf16")
PRECISIONS = ("fast", "exact")
MAX_IMAGES = 4096
MAX_STEPS = 1000


def choice(name: str, value: str, choices: tuple[str, ...]) -> int:
    if value not in choices:
        raise ArgumentError(f"{name}={value!r}: expected one of {', '.join(choices)}")
    return choices.index(value)


def integer(name: str, value: Any, low: int, high: int, default: int = 0) -> int:
    """In C a zero asks for the default; here None does, and a zero is the mistake it looks like."""
    if value is None:
        return default
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name}={value!r}: expected a whole number") from None
    if not low <= number <= high:
        raise ArgumentError(f"{name}={number}: expected {low} to {high}")
    return number


def number(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if not hasattr(value, "__float__"):  # text would be parsed by float()
        raise ArgumentError(f"{name}={value!r}: expected a number")
    return float(value)


def listener(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ArgumentError(f"{name}={value!r}: expected a function")
    return value


def generate_params(
    width: int | None,
    height: int | None,
    steps: int | None,
    seed: int | None,
    n: int | None,
    guidance: float | None,
    shift: float | None,
    noise_dtype: str,
    timestep_dtype: str,
    preview_every: int,
) -> Any:
    """bonsai_generate_params without prompt and callbacks."""
    params = ffi.new("bonsai_generate_params *")
    lib.bonsai_generate_params_init(params)
    params.width = integer("width", width, 1, 2**16)
    params.height = integer("height", height, 1, 2**16)
    params.steps = integer("steps", steps, 1, MAX_STEPS)
    params.images = integer("n", n, 1, MAX_IMAGES, default=1)
    params.seed = integer("seed", seed, 0, 2**64 - 1, default=secrets.randbits(32))
    params.preview_every = integer("preview_every", preview_every, 0, 10000)
    params.noise_dtype = choice("noise_dtype", noise_dtype, DTYPES)
    params.timestep_dtype = choice("timestep_dtype", timestep_dtype, DTYPES)
    params.guidance = number("guidance", guidance, params.guidance)
    params.shift = number("shift", shift, params.shift)
    return params
