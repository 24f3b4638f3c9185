# SPDX-License-Identifier: Apache-2.0
"""Reference pictures of the prompt list: torch and diffusers in float32, for `run.py --reference`.

    python bench/quality/reference.py CHECKPOINT OUTDIR [--prompts N] [--seed S]

CHECKPOINT is a directory in the diffusers layout, as convert/seedling/export.py writes it.
"""

import argparse
import json
import sys
from pathlib import Path

import world
from PIL import Image

sys.path.insert(0, str(world.ROOT / "tests"))

from support import reference  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--prompts", type=int, default=48, metavar="N", help="the first N (default: 48)")
    p.add_argument("--seed", type=int, default=0, help="of the first prompt, as in run.py")
    args = p.parse_args()
    index = json.loads((args.checkpoint / "model_index.json").read_text(encoding="utf-8"))
    width, height = index["default_width"], index["default_height"]
    args.out.mkdir(parents=True, exist_ok=True)
    for i, entry in enumerate(world.load(count=args.prompts)):
        path = args.out / f"{entry.id}.png"
        if path.exists():
            continue
        options = reference.Options(
            entry.prompt, width, height, index["default_steps"], args.seed + i
        )
        rows = reference.run(args.checkpoint, options)["image_uint8"]
        Image.fromarray(rows.reshape(height, width, 3).astype("uint8")).save(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
