# SPDX-License-Identifier: Apache-2.0
"""One request in several processes and at all CPU levels of this machine.

At one level the bytes are the same. Levels add up in different orders, so that the last bits of
sums differ; in fast precision such a bit may move an activation to the next of 255 values.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import native
from support.cases import Case
from support.configs import Recipe
from support.golden_file import relative_error

# Of a level against the plain kernels, at most: relative L2 error of the velocity of step 0 and of
# the final latents, difference of any byte of the picture.
LIMITS = {"exact": (1e-5, 1e-5, 1), "fast": (2e-2, 3e-2, 8)}

CASE = Case("levels", Recipe("tiny", "ternary"), "a red apple", 64, 48, steps=4, seed=3)


@pytest.fixture(scope="module")
def levels(bonsai_cli: Path) -> list[str]:
    """The levels of this processor, worst first."""
    done = subprocess.run([bonsai_cli, "doctor", "--json"], capture_output=True, timeout=300)
    found = json.loads(done.stdout)["cpu_levels"]
    return [level["name"] for level in found if level["available"]]


@pytest.fixture(scope="module")
def run(converted, bonsai_probe: Path, tmp_path_factory) -> Callable[..., dict[str, np.ndarray]]:
    def probe(precision: str, level: str) -> dict[str, np.ndarray]:
        folder = tmp_path_factory.mktemp(f"{precision}-{level}")
        model = converted(CASE.recipe)
        return native.probe(bonsai_probe, model, CASE, folder, precision, BONSAI_CPU=level)

    return probe


@pytest.mark.parametrize("precision", LIMITS)
def test_difference_between_levels(precision, levels, run, record_property):
    runs = {level: run(precision, level) for level in levels}
    plain = runs.pop("generic")
    last = f"latents_{CASE.steps - 1}"
    for level, found in runs.items():
        assert np.array_equal(found["noise"], plain["noise"]), "noise is the same everywhere"
        velocity = relative_error(found["velocity_0"], plain["velocity_0"])
        latents = relative_error(found[last], plain[last])
        pixels = found["image_uint8"].astype(int) - plain["image_uint8"]
        text = f"{level}: velocity {velocity:.1e}, latents {latents:.1e}, "
        text += f"pixels {np.abs(pixels).max()} at most"
        print(precision, text)
        record_property(f"{precision} {level}", text)
        measured = (velocity, latents, np.abs(pixels).max())
        assert all(m <= limit for m, limit in zip(measured, LIMITS[precision])), text


def test_processes_agree(converted, bonsai_cli, levels, tmp_path):
    """The same PNG from processes of other thread counts, folders, locales and heap contents."""
    model = converted(CASE.recipe)
    surroundings = [
        ({}, "1"),
        ({}, "1"),
        ({"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}, "2"),
        ({"MALLOC_PERTURB_": "165", "MALLOC_ARENA_MAX": "1"}, "7"),
    ]
    for level in levels:
        pictures = set()
        for i, (more, threads) in enumerate(surroundings):
            folder = tmp_path / f"{level}-{i}"
            folder.mkdir()
            command = [bonsai_cli, "-m", model, "-p", CASE.prompt, "-s", "3", "-t", threads]
            command += ["--size", "64x48", "--steps", "2", "-o", "a.png", "-q"]
            env = os.environ | more | {"BONSAI_CPU": level}
            subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
            pictures.add((folder / "a.png").read_bytes())
        assert len(pictures) == 1, level
