# SPDX-License-Identifier: Apache-2.0
"""Draws the README's pictures: `python bench/quality/gallery.py [MODEL.gguf] [--out OUT.png]`."""

import argparse
import textwrap
from pathlib import Path

import pictures
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
COLUMNS, TILE, TEXT = 6, 192, 34  # pixels
PROMPTS = (
    "a red apple on a blue background",
    "a bonsai tree",
    "a fox on a navy to cyan gradient",
    "a robot on a gray background",
    "three cherries on a pink background",
    "a castle above a horse on a teal background",
    "a cat face and a dog face on a green background",
    "a rocket to the right of a ringed planet on a black background",
    "a red heart, a blue cross and a green oval",
    "an octopus above a fish on a blue to navy gradient",
    "two mushrooms on a brown background",
    "a unicorn on a pink to purple gradient background",
    "a huge gem on a black background",
    "a guitar and a violin",
    "a tiny purple star on a yellow background",
    "a lion, a tiger face and a bear on a lime background",
    "a pizza below a hamburger on an orange background",
    "four roses on a white background",
    "a cup of coffee on a beige background",
    "a green star to the left of a purple hexagon on yellow",
    "a penguin on a light blue background",
    "an airplane above a mountain on a cyan background",
    "a sunflower on a gradient from blue to beige",
    "a smiling face with sunglasses on a teal background",
)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", nargs="?", type=Path, default=ROOT / "models/seedling-ternary.gguf")
    p.add_argument("--out", type=Path, default=ROOT / "models/seedling.png")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    engine, settings = pictures.drawing_engine(), pictures.Settings()
    font = ImageFont.load_default()
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + 8), rows * (TILE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(PROMPTS):
        x, y = i % COLUMNS * (TILE + 8) + 4, i // COLUMNS * (TILE + TEXT) + 2
        picture = engine.draw(args.model, settings, prompt, args.seed)
        sheet.paste(picture.resize((TILE, TILE), Image.LANCZOS), (x, y))
        draw.multiline_text((x, y + TILE + 1), "\n".join(textwrap.wrap(prompt, 34)), "black", font)
    engine.close()
    sheet.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
