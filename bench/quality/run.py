# SPDX-License-Identifier: Apache-2.0
"""Measures how well models follow prompts: draws the prompt list, judges each picture, writes
tables and a contact sheet. Give a dense model too, and the others are compared with it.

    python bench/quality/run.py MODEL.gguf [MODEL2.gguf ...] [--precision fast exact] [--prompts N]
"""

import argparse
import statistics
import sys
from pathlib import Path

import checker
import numpy as np
import pictures
import report
import world
from PIL import Image
from seedling import sprites

SHEET_PROMPTS = 24


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    p.add_argument("--precision", nargs="+", default=["fast"], choices=("fast", "exact"))
    p.add_argument("--device", nargs="+", default=["cpu"], help="ids of devices (default: cpu)")
    p.add_argument("--prompts", type=int, metavar="N", help="only the first N (default: all)")
    p.add_argument("--seed", type=int, default=0, help="of the first prompt, then one more each")
    p.add_argument("--size", metavar="WxH", help="default: the model's")
    p.add_argument("--steps", type=int, help="default: the model's")
    p.add_argument("--threads", type=int)
    p.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="pictures ID.png of the reference pipeline, same seeds",
    )
    p.add_argument("--out", type=Path, default=Path("build/quality"), metavar="DIR")
    return p.parse_args(argv)


def derangement(entries, seed=0):
    """For each index another one: of the same category wherever that has two."""
    rng, other = np.random.default_rng(seed), [0] * len(entries)
    for category in world.CATEGORIES:
        group = rng.permutation([i for i, e in enumerate(entries) if e.category == category])
        for a, b in zip(group, np.roll(group, 1)):
            other[a] = int(b) if a != b else (int(a) + 1) % len(entries)
    return other


def judge(check, entries, drawn):
    """(verdicts, verdicts of the control) for pictures in the order of the entries."""
    other = derangement(entries)
    verdicts = [check(e, p) for e, p in zip(entries, drawn, strict=True)]
    return verdicts, [check(entries[o], p) for o, p in zip(other, drawn, strict=True)]


def reference_psnr(folder, entries, drawn):
    """Mean over the reference pictures that exist, in dB."""
    found = []
    for entry, picture in zip(entries, drawn, strict=True):
        path = folder / f"{entry.id}.png"
        if path.exists():
            with Image.open(path) as image:
                found.append(checker.psnr(np.array(image.convert("RGB")), picture))
    if not found:
        raise SystemExit(f"{folder}: no picture named like {entries[0].id}.png")
    return float(np.mean(found))


def measure(album, entries, check, reference):
    """(Result, pictures) of one album."""
    drawn, seconds = [], []
    for i, entry in enumerate(entries):
        picture, took = album.picture(i, entry)
        drawn.append(picture)
        seconds.append(took)
        if sys.stderr.isatty() or (i + 1) % 20 == 0:
            print(f"\r{album.folder.name}: {i + 1}/{len(entries)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    album.engine.close()
    verdicts, control = judge(check, entries, drawn)
    s = album.settings
    result = report.Result(
        album.model.stem,
        pictures.variant(album.model),
        s.device,
        s.precision,
        entries,
        verdicts,
        control,
        statistics.median(seconds),
    )
    if reference:
        result.reference = reference_psnr(reference, entries, drawn)
    return result, drawn


def main(argv=None):
    args = arguments(argv)
    entries = world.load(count=args.prompts)
    width, height = map(int, args.size.split("x")) if args.size else (None, None)
    art = sprites.Sprites()
    check, engine = checker.Checker(art), pictures.drawing_engine()
    chosen = list(range(min(SHEET_PROMPTS, len(entries))))
    results, shown = [], []
    for model in args.models:
        for device in args.device:
            for precision in args.precision:
                settings = pictures.Settings(
                    device, precision, args.seed, width, height, args.steps, args.threads
                )
                album = pictures.Album(engine, model, settings, args.out / "pictures")
                result, drawn = measure(album, entries, check, args.reference)
                results.append(result)
                shown.append([drawn[i] for i in chosen])
    ideals = [
        entries[i].ideal(art, picture.shape[1], picture.shape[0])
        for i, picture in zip(chosen, shown[0], strict=True)
    ]
    report.write(results, args.out)
    report.sheet(results, shown, ideals, chosen).save(args.out / "sheet.png")
    print(report.markdown(results))
    print(f"written to {args.out}: report.md results.csv details.jsonl sheet.png")


if __name__ == "__main__":
    main()
