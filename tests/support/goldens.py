# SPDX-License-Identifier: Apache-2.0
"""Makes and checks the golden files in tests/data/goldens.

python tests/support/goldens.py make [CASE ...]       needs torch, diffusers, transformers
python tests/support/goldens.py compare CASE DIR      DIR holds the probe's NAME.npy files
python tests/support/goldens.py list
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import checkpoint, reference
from support.cases import ALL_CASES, FAST_CASES, Case
from support.configs import Recipe
from support.golden_file import Golden, StageError, read_arrays, relative_error, save

GOLDENS = Path(
    os.environ.get("BONSAI_GOLDENS") or Path(__file__).resolve().parents[1] / "data/goldens"
)

# Arrays that a fast case keeps: what its figure is about, and where an error would start.
_FAST_ARRAYS = (
    "input_ids",
    "attention_mask",
    "noise",
    "prompt_embeds",
    "s0_ctx_embed",
    "s0_mod_img",
    "velocity_0",
)
# Arrays that a probe need not write: each is implied by a required one, and only helps to find
# an error (latents by sigmas, s0_temb and velocities by timesteps).
OPTIONAL = ("sigmas", "timesteps", "neg_prompt_embeds", "velocity_cond_", "velocity_uncond_")
# Compared by check_ids.
TOKENS = ("input_ids", "attention_mask")


def golden_path(case: Case) -> Path:
    return GOLDENS / f"{case.name}.npz"


def load(case: Case) -> Golden:
    return Golden(golden_path(case))


def options_of(case: Case, **changes) -> reference.Options:
    settings = {
        "prompt": case.prompt,
        "width": case.width,
        "height": case.height,
        "steps": case.steps,
        "seed": case.seed,
        "guidance": case.guidance,
        "noise_dtype": case.noise_dtype,
    }
    return reference.Options(**(settings | changes))


def reference_errors(folder: Path, case: Case, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 errors of the reference run in bf16 from the same noise."""
    rounded = reference.run(folder, options_of(case, dtype="bf16"))
    if not np.array_equal(rounded["noise"], truth["noise"]):
        raise RuntimeError(f"{case.name}: the bf16 run started from other noise")
    names = ("prompt_embeds", "s0_ctx_embed", "velocity_0")
    return {name: relative_error(rounded[name], truth[name]) for name in names}


def make_one(case: Case, folder: Path, digest: str) -> str:
    """Write the golden file of one case; returns a line about it."""
    import diffusers
    import torch
    import transformers

    start = time.perf_counter()
    arrays = reference.run(folder, options_of(case))
    meta = {
        "case": case.as_dict(),
        "checkpoint": digest,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "cpu": reference.torch_level(),
    }
    line = case.name
    if case in FAST_CASES:
        errors = reference_errors(folder, case, arrays)
        kept = {name: arrays[name] for name in _FAST_ARRAYS}
        save(golden_path(case), kept, meta | {"bf16_errors": errors}, full=("velocity_0",))
        line += "".join(f", bf16 {name} {error:.3e}" for name, error in errors.items())
    else:
        image = arrays.pop("image_uint8")
        save(golden_path(case), arrays, meta, image=image)
        line += f", {len(arrays)} arrays"
    size = golden_path(case).stat().st_size
    return f"{line}, {size / 1e3:.0f} kB, {time.perf_counter() - start:.1f} s"


def make(cases: list[Case]) -> None:
    reason = reference.unavailable()
    if reason:
        raise SystemExit(f"cannot make goldens: {reason}")
    by_recipe: dict[Recipe, list[Case]] = {}
    for case in cases:
        by_recipe.setdefault(case.recipe, []).append(case)
    for recipe, group in by_recipe.items():
        with tempfile.TemporaryDirectory(prefix="bonsai-golden-") as scratch:
            folder = checkpoint.make(recipe, Path(scratch))
            digest = checkpoint.digest(folder)
            for case in group:
                print(make_one(case, folder, digest), flush=True)


def check_stages(golden: Golden, got: dict[str, np.ndarray]) -> list[StageError]:
    """Errors of all stages in the order of the pipeline; a missing one is infinitely off."""
    errors = []
    for name in golden.table:
        if name in TOKENS:
            continue
        if name in got:
            errors.append(golden.compare(name, got[name]))
        elif not name.startswith(OPTIONAL):
            missing = float("inf")
            errors.append(
                StageError(name, missing, missing, missing, "the probe wrote no such file")
            )
    return errors


def check_ids(golden: Golden, got: dict[str, np.ndarray]) -> None:
    """Token ids equal the golden ones; the probe may write them with or without the padding."""
    count = int(golden.values("attention_mask").sum())
    want = golden.values("input_ids")
    ids = got["input_ids"].reshape(-1)
    if "attention_mask" in got:
        np.testing.assert_array_equal(
            got["attention_mask"].reshape(-1), golden.values("attention_mask")
        )
    np.testing.assert_array_equal(ids, want[:count] if ids.size != want.size else want)


def pixel_agreement(got: np.ndarray, want: np.ndarray) -> float:
    """Share of values within one grey level."""
    gap = np.abs(got.astype(np.int32).reshape(-1) - want.astype(np.int32).reshape(-1))
    return float(np.mean(gap <= 1))


def compare(case: Case, folder: Path) -> bool:
    golden, got = load(case), read_arrays(folder)
    check_ids(golden, got)
    errors = check_stages(golden, got)
    print("\n".join(str(error) for error in errors))
    share = 1.0
    if golden.image is not None:
        share = pixel_agreement(got["image_uint8"], golden.image)
        print(f"image_uint8: {100 * share:.3f} % within one level")
    worst = max(error.worst for error in errors)
    print(f"worst {worst:.2e}")
    return worst <= 1e-4 and share >= 0.999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="run the reference and write golden files")
    maker.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    checker = commands.add_parser("compare", help="compare a probe's arrays with a golden file")
    checker.add_argument("case")
    checker.add_argument("folder", type=Path)
    commands.add_parser("list", help="print the names of the cases")
    args = parser.parse_args()
    names = list(getattr(args, "cases", [])) or [getattr(args, "case", None)]
    unknown = [name for name in names if name and name not in ALL_CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; see the list command")
    if args.command == "make":
        make([case for case in ALL_CASES.values() if names == [None] or case.name in names])
    elif args.command == "compare":
        return 0 if compare(ALL_CASES[args.case], args.folder) else 1
    else:
        print("\n".join(ALL_CASES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
