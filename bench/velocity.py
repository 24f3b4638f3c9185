# SPDX-License-Identifier: Apache-2.0
"""The engine's velocity beside the reference's: relative L2 error, as a multiple of bf16's error.

    python bench/velocity.py --probe build/tests/bonsai-probe --on cpu:avx2 --on cuda:0

Needs numpy, not torch: the random checkpoints are made here from their recipes, and what the
reference computes of them in fp32, with the error of its run in bf16 from the same noise, lies in
tests/data/goldens (`python tests/support/goldens.py make` made it with torch and diffusers). A
whole picture's first step counts: text encoder and transformer, 128x128, noise rounded to bf16.

--on names a device, or a level of the processor after "cpu:"; it may stand several times. The
program ends with 1 if a figure is over its bound: fast 1.3 times bf16 on the processor and 1.6
times elsewhere, exact 1e-3.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import checkpoint, goldens, native  # noqa: E402
from support.cases import FAST_CASES, Case  # noqa: E402
from support.configs import Recipe  # noqa: E402
from support.golden_file import relative_error  # noqa: E402

CHECKPOINT = ROOT / "tests" / "support" / "checkpoint.py"
EXACT_BOUND = 1e-3  # relative L2 error of the velocity
CPU_BOUND, DEVICE_BOUND = 1.3, 1.6  # times the reference's error in bf16
PRECISIONS = ("fast", "exact")


@dataclass(frozen=True)
class Row:
    """One run of the engine."""

    case: str
    on: str
    precision: str
    error: float  # of the velocity of the first step against fp32
    bf16: float  # the reference's own, in bf16

    @property
    def multiple(self) -> float:
        return self.error / self.bf16

    @property
    def bound(self) -> float:
        """The largest error allowed."""
        if self.precision == "exact":
            return EXACT_BOUND
        return self.bf16 * (CPU_BOUND if self.on.startswith("cpu") else DEVICE_BOUND)

    @property
    def good(self) -> bool:
        return self.error <= self.bound  # false for what is no number


def table(rows: list[Row]) -> str:
    """A line for each case: bf16's error, then what each place and precision has."""
    columns = list(dict.fromkeys((row.on, row.precision) for row in rows))
    out = ["| checkpoint | bf16 | " + " | ".join(f"{on} {p}" for on, p in columns) + " |"]
    out.append("|---" * (2 + len(columns)) + "|")
    for name in dict.fromkeys(row.case for row in rows):
        of_case = {(row.on, row.precision): row for row in rows if row.case == name}
        bf16 = next(iter(of_case.values())).bf16
        cells = [cell(of_case[column]) if column in of_case else "-" for column in columns]
        out.append(f"| {name} | {100 * bf16:.2f} % | " + " | ".join(cells) + " |")
    return "\n".join(out)


def cell(row: Row) -> str:
    text = f"{row.error:.1e}" if row.precision == "exact" else f"{row.multiple:.2f}x"
    return text if row.good else f"**{text}**"


def summary(rows: list[Row]) -> str:
    """The worst of each place and precision beside its bound."""
    out = []
    for on, precision in dict.fromkeys((row.on, row.precision) for row in rows):
        of_column = [row for row in rows if (row.on, row.precision) == (on, precision)]
        worst = max(of_column, key=lambda row: row.error / row.bound)
        factor = 1.0 if precision == "exact" else worst.bf16
        unit = "" if precision == "exact" else " times bf16"
        out.append(
            f"{on} {precision}: at most {worst.error / factor:.3g}{unit} ({worst.case}), "
            f"bound {worst.bound / factor:.3g}: {'met' if worst.good else 'MISSED'}"
        )
    return "\n".join(out)


def model_of(recipe: Recipe, cache: Path) -> Path:
    """The converted checkpoint of that recipe, made unless it is there (processes of their own)."""
    model = cache / f"{recipe.label}-{checkpoint.source_hash()}.gguf"
    if model.is_file():
        return model
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        folder, part = Path(scratch) / "checkpoint", Path(scratch) / "model.gguf"
        command = [sys.executable, CHECKPOINT, "--config", recipe.config]
        command += ["--weights", recipe.weights, "--outlier", str(recipe.outlier), folder]
        native.run_program(command, timeout=900)
        native.convert(folder, part)
        part.rename(model)
    return model


def measure(probe: Path, model: Path, case: Case, on: str, precision: str, threads: int) -> Row:
    """The engine's velocity of the case's first step against its golden."""
    device, _, level = on.partition(":") if on.startswith("cpu") else (on, "", "")
    environment = {"BONSAI_CPU": level} if level else {}
    golden = goldens.load(case)
    with tempfile.TemporaryDirectory(prefix="bonsai-velocity-") as scratch:
        got = native.probe(
            probe, model, case, Path(scratch), precision, threads, device, **environment
        )
    truth = golden.full("velocity_0")
    error = relative_error(got["velocity_0"].reshape(truth.shape), truth)
    return Row(case.name, on, precision, error, golden.meta["bf16_errors"]["velocity_0"])


def measure_all(options: argparse.Namespace, cases: list[Case], cache: Path) -> list[Row]:
    """Models are made --jobs at a time; the engine runs one at a time, as soon as one is there."""
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        models = [(case, pool.submit(model_of, case.recipe, cache)) for case in cases]
        for case, model in models:
            for on in options.on:
                for precision in options.precision:
                    row = measure(
                        options.probe, model.result(), case, on, precision, options.threads
                    )
                    rows.append(row)
                    print(f"{row.case} {on} {precision}: {row.error:.2e}", file=sys.stderr)
            if not options.cache:
                model.result().unlink()
    return rows


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a = parser.add_argument
    a("--probe", type=Path, help="bonsai-probe; default: the one of the tests' build")
    a("--on", action="append", metavar="PLACE", help="cpu, cpu:LEVEL, cuda:N; default cpu")
    a("--case", action="append", metavar="TEXT", help="cases whose name holds it; default all")
    a("--precision", action="append", choices=PRECISIONS, help="default both")
    a("--threads", type=int, default=2, help="of the engine on the processor")
    a("--jobs", type=int, default=1, help="checkpoints made at a time (300 MB each)")
    a("--cache", type=Path, help="keep the models there; default: a temporary folder")
    a("--json", type=Path, help="write the rows there")
    return parser


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    options.on = options.on or ["cpu"]
    options.precision = options.precision or list(PRECISIONS)
    options.probe = options.probe.resolve() if options.probe else native.program("bonsai-probe")
    wanted = options.case or [""]
    cases = [case for case in FAST_CASES if any(text in case.name for text in wanted)]
    if not cases:
        parser.error(f"no such case; there are {', '.join(case.name for case in FAST_CASES)}")
    cache = options.cache or Path(tempfile.mkdtemp(prefix="bonsai-velocity-"))
    cache.mkdir(parents=True, exist_ok=True)
    try:
        rows = measure_all(options, cases, cache)
    except native.NativeError as error:
        print(f"velocity.py: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.cache:
            shutil.rmtree(cache)
    print(table(rows) + "\n\n" + summary(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
