# SPDX-License-Identifier: Apache-2.0
"""What a type checker makes of programs that use the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bonsai
import pytest

RIGHT = """
from typing import Any
import numpy.typing as npt
import numpy as np
from bonsai import Engine, Progress, Step, noise, pnginfo
from PIL import Image

def on_progress(progress: Progress) -> None:
    print(progress.stage, progress.fraction)

def on_step(step: Step) -> None:
    print(step.latents.mean(), step.image)

def draw(many: int) -> None:
    with Engine("model.gguf", max_memory=2**30) as engine:
        picture = engine.generate("x", 64, progress=on_progress, callback=on_step)
        picture.save("a.png", pnginfo=pnginfo(picture))
        one: Image.Image = engine.generate("x", n=1)
        two: list[Image.Image] = engine.generate("x", seed=1, n=2)
        some: list[Image.Image] = engine.generate("x", n=many)
        rows: npt.NDArray[np.float32] = engine.encode_prompt("x")
        start: npt.NDArray[np.float32] = noise(1, 16)
        for step in engine.stream("x", preview_every=1):
            print(step.sigma, one, two, some, rows, start)
"""

WRONG = """
from bonsai import Engine

engine = Engine("model.gguf")
engine.generate(3)
engine.generate("x", sise="64x64")
engine.generate("x", n=2).save("a.png")
engine.generate("x").rows
engine.info.witdh
"""


def check(folder: Path, program: str) -> tuple[int, str]:
    pytest.importorskip("mypy")
    (folder / "program.py").write_text(program.lstrip())
    root = Path(bonsai.__file__).parents[1]  # where packages are installed mypy looks itself
    path = {} if root.name.endswith("-packages") else {"MYPYPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"],
        cwd=folder,
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def test_types_of_a_program(tmp_path):
    code, said = check(tmp_path, RIGHT)
    assert code == 0, said
    code, said = check(tmp_path, WRONG)
    lines = [int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line]
    assert code == 1 and set(lines) == {4, 5, 6, 7, 8}, said
    assert (Path(bonsai.__file__).parent / "py.typed").exists()
