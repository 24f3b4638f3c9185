# SPDX-License-Identifier: Apache-2.0
"""Tables of a comparison, and a plot of time and memory against pixels."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from engines import HELD_UP, STAGES, Run
from plot import draw


def median(runs: list[Run], what: str, stage: str) -> float:
    return statistics.median(getattr(run, what).get(stage, 0.0) for run in runs)


def ratio(value: float, ours: float) -> str:
    return f"{value / ours:.2f}" if ours > 0 and value > 0 else "-"


def seconds(value: float) -> str:
    if value <= 0:
        return "-"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def stage_table(runs: dict[str, list[Run]], steps: int) -> str:
    """Medians of the rounds, and how many times those of the first engine, which is ours."""
    names = list(runs)
    out = ["| stage | engine | CPU-s | CPU / ours | wall s | wall / ours | peak GB |"]
    out.append("|---|---|---|---|---|---|---|")
    for stage in STAGES:
        for name in names:
            cpu, wall = (median(runs[name], what, stage) for what in ("cpu", "wall"))
            own = [median(runs[names[0]], what, stage) for what in ("cpu", "wall")]
            label = f"{steps} step{'s' if steps > 1 else ''}" if stage == "steps" else stage
            peak = max(run.peak for run in runs[name]) / 1e9
            ended = any(
                stage in (run.unfinished, "process") for run in runs[name] if run.unfinished
            )
            out.append(
                f"| {label} | {name} | {'> ' * ended}{seconds(cpu)} | {ratio(cpu, own[0])} | "
                f"{seconds(wall)} | {ratio(wall, own[1])} | "
                f"{f'{peak:.2f}' if stage == 'process' else '-'} |"
            )
    for name in names:
        held = max(run.held for run in runs[name])
        if held > HELD_UP:
            out.append(
                f"\n{name}: the watcher was held up for {held:.0f} s: the whole process counts, "
                "its stages do not"
            )
    return "\n".join(out)


def product_table(products: dict[str, list[dict]]) -> str:
    """GOP/s a processor second: our packed products beside sgemm's, by shape."""
    out = ["| product | ours, GOP/CPU-s | sgemm, GOP/CPU-s | ours / sgemm | wall, ours / sgemm |"]
    out.append("|---|---|---|---|---|")
    for shape, rounds in products.items():
        ours, theirs, wall, their_wall = (
            statistics.median(r[key] for r in rounds)
            for key in ("cpu_rate", "sgemm_cpu_rate", "wall_rate", "sgemm_wall_rate")
        )
        out.append(
            f"| {shape} | {ours:.0f} | {theirs:.0f} | {ratio(ours, theirs)} | "
            f"{ratio(wall, their_wall)} |"
        )
    return "\n".join(out)


def points(results: dict[str, dict[str, list[Run]]]) -> dict[str, list[tuple]]:
    """engine -> (pixels, wall, processor seconds, bytes), by growing size."""
    out: dict[str, list[tuple]] = {}
    for size, runs in results.items():
        pixels = math.prod(map(int, size.split("x")))
        for name, list_ in runs.items():
            wall, cpu = median(list_, "wall", "process"), median(list_, "cpu", "process")
            out.setdefault(name, []).append((pixels, wall, cpu, max(r.peak for r in list_)))
    return {name: sorted(rows) for name, rows in out.items()}


def plot(results: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """Whole processes: seconds of the clock, processor seconds, memory; against pixels."""
    found = points(results)
    titles = ("seconds", "processor seconds", "resident GB, highest")
    panels = []
    for column, title in enumerate(titles, 1):
        scale = 1e-9 if column == 3 else 1.0
        panels.append(
            (title, {n: [(r[0], r[column] * scale) for r in rows] for n, rows in found.items()})
        )
    draw(panels, path)
