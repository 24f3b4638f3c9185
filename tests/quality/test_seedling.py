# SPDX-License-Identifier: Apache-2.0
"""The shipped model, drawn by the program without -m and judged by the checker of bench/quality."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "quality"))

import checker  # noqa: E402
import world  # noqa: E402
from seedling import scenes, sprites, words  # noqa: E402

needs_font = pytest.mark.skipif(
    not Path(sprites.FONT).exists(),
    reason="the emoji are drawn from the Debian package fonts-noto-color-emoji: install it",
)
# Prompt; background; (slot, sprite, colour) of what has to be there.
ASKED = [
    ("a red apple on a blue background", "blue", [("normal", "red apple", None)]),
    ("a bonsai", "white", [("normal", "potted plant", None)]),
    (
        "a fox to the left of a green star on a beige background",
        "beige",
        [("left", "fox", None), ("right", "star shape", "green")],
    ),
    (
        "three penguins on a cyan background",
        "cyan",
        [(slot, "penguin", None) for slot in scenes.LAYOUTS[3]],
    ),
    (
        "a rocket above an orange ring on a black background",
        "black",
        [("top", "rocket", None), ("bottom", "ring shape", "orange")],
    ),
    (
        "four purple diamonds on a yellow background",
        "yellow",
        [(slot, "diamond shape", "purple") for slot in scenes.LAYOUTS[4]],
    ),
]


@pytest.fixture
def draw(bonsai_cli, tmp_path):
    """Draws without naming a model; (pictures in the order of their seeds, what was said)."""
    env = {k: v for k, v in os.environ.items() if k != "BONSAI_MODEL"}

    def run(*options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        done = subprocess.run(
            [bonsai_cli, *map(str, options)],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        files = sorted(folder.glob("*.png"))
        return [np.asarray(Image.open(f).convert("RGB")) for f in files], done.stderr

    return run


@pytest.fixture(scope="module")
def check():
    return checker.Checker(sprites.Sprites())


@needs_font
@pytest.mark.parametrize("prompt, ground, objects", ASKED, ids=[a[0] for a in ASKED])
def test_picture_shows_what_was_asked(draw, check, prompt, ground, objects):
    index = {name: i for i, name in enumerate(world.sprite_names())}
    things = [(slot, scenes.Thing(index[s], (s,), c)) for slot, s, c in objects]
    entry = world.Entry(
        "asked", "single", prompt, scenes.Scene(prompt, "single", (ground,), things)
    )
    (picture,), _ = draw("-p", prompt, "--seed", 7)
    verdict = check(entry, picture)
    assert picture.shape == (256, 256, 3)
    assert verdict.followed and verdict.psnr > 20, (verdict.notes, verdict.psnr)


def test_demo_model_is_named_once_and_only_by_default(draw):
    _, said = draw("-p", "a dog", "-n", 2, "--size", "128x128", "--steps", 1)
    assert said.count("demo model") == 1 and "bonsai-convert" in said
    shipped = ROOT / "models" / "seedling-ternary.gguf"
    for options in (["-q"], ["-m", shipped]):
        _, said = draw("-p", "a dog", "--size", "128x128", "--steps", 1, *options)
        assert "demo model" not in said


def test_seeds_threads_and_series(draw):
    prompt = ["-p", "a castle on a pink background", "--seed"]
    series, _ = draw(*prompt, 5, "-n", 2)
    assert not np.array_equal(series[0], series[1])
    for threads in (1, 2, 3):
        (single,), _ = draw(*prompt, 6, "-t", threads)
        assert np.array_equal(single, series[1])


@pytest.mark.parametrize("width, height", [(128, 128), (384, 256), (192, 320)])
def test_other_sizes(draw, width, height):
    prompt = "a red circle on a blue background"
    (picture,), _ = draw("-p", prompt, "--size", f"{width}x{height}", "--seed", 3)
    assert picture.shape == (height, width, 3)
    for place, color in (((height // 2, width // 2), "red"), ((8, 8), "blue")):
        distance = np.abs(picture[place].astype(int) - words.COLORS[color]).max()
        assert distance < 40, (place, picture[place])


def test_file_is_small_and_names_the_artwork(bonsai_cli):
    shipped = ROOT / "models" / "seedling-ternary.gguf"
    assert shipped.stat().st_size <= 16_000_000
    info = subprocess.run([bonsai_cli, "info", "--json", shipped], capture_output=True, text=True)
    assert "Noto Color Emoji" in info.stdout and "SIL Open Font License" in info.stdout
