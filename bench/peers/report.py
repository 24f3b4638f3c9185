# SPDX-License-Identifier: Apache-2.0
"""Tables of a comparison, and a plot of time and memory against pixels."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from engines import HELD_UP, STAGES, Run

COLORS = ((20, 90, 170), (200, 60, 40), (40, 140, 70), (130, 80, 160), (190, 140, 20))


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


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose low to high."""
    every = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    first = max(i for i, v in enumerate(every) if v <= low)
    last = min(i for i, v in enumerate(every) if v >= high)
    return every[first : max(last, first + 1) + 1]


class Panel:
    """A plot with logarithmic axes in one corner of a picture."""

    WIDTH, HEIGHT, LEFT, TOP = 420, 300, 60, 40

    def __init__(self, draw, index: int, title: str, series: dict[str, list[tuple]]) -> None:
        self.draw, self.series = draw, series
        self.left = self.LEFT + index * (self.WIDTH + self.LEFT)
        xs = [x for rows in series.values() for x, _ in rows]
        ys = [y for rows in series.values() for _, y in rows]
        self.xs, self.ys = sorted(set(xs)), ticks(min(ys), max(ys))
        self.span = (min(xs) / 1.3, max(xs) * 1.3), (self.ys[0], self.ys[-1])
        draw.text((self.left, 12), title, fill=(0, 0, 0))
        self._axes()
        for (_, rows), color in zip(series.items(), COLORS * 9):  # noqa: B905
            self._line(rows, color)

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.span
        across = math.log(x / x0) / math.log(x1 / x0)
        up = math.log(y / y0) / math.log(y1 / y0)
        return self.left + across * self.WIDTH, self.TOP + (1 - up) * self.HEIGHT

    def _axes(self) -> None:
        right, bottom = self.left + self.WIDTH, self.TOP + self.HEIGHT
        self.draw.rectangle((self.left, self.TOP, right, bottom), outline=(120, 120, 120))
        for y in self.ys:
            height = self.at(self.xs[0], y)[1]
            self.draw.line((self.left, height, right, height), fill=(225, 225, 225))
            self.draw.text((self.left - 6, height), f"{y:g}", fill=(60, 60, 60), anchor="rm")
        for x in self.xs:
            place = self.at(x, self.ys[0])[0]
            self.draw.text((place, bottom + 8), f"{x / 1000:.0f}k", fill=(60, 60, 60), anchor="mt")

    def _line(self, rows: list[tuple], color: tuple) -> None:
        spots = [self.at(x, y) for x, y in rows]
        if len(spots) > 1:
            self.draw.line(spots, fill=color, width=2)
        for x, y in spots:
            self.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)


def plot(results: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """Whole processes: seconds of the clock, processor seconds, memory; against pixels."""
    from PIL import Image, ImageDraw

    found = points(results)
    picture = Image.new("RGB", (3 * (Panel.WIDTH + Panel.LEFT) + 40, 420), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    titles = ("seconds", "processor seconds", "resident GB, highest")
    for column, title in enumerate(titles):
        scale = 1e-9 if column == 2 else 1.0
        series = {n: [(r[0], r[column + 1] * scale) for r in rows] for n, rows in found.items()}
        Panel(draw, column, f"{title}, by pixels (both axes logarithmic)", series)
    for i, (name, color) in enumerate(zip(found, COLORS * 9)):  # noqa: B905
        left = Panel.LEFT + 200 * i
        draw.rectangle((left, 392, left + 14, 402), fill=color)
        draw.text((left + 20, 397), name, fill=(0, 0, 0), anchor="lm")
    picture.save(path)
