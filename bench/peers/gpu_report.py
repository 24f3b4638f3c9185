# SPDX-License-Identifier: Apache-2.0
"""What gpu.py has measured: kept, written after every figure, made into tables and a plot."""

from __future__ import annotations

import json
import statistics
import threading
from dataclasses import dataclass, field
from pathlib import Path

import plot

ROWS = ("encoder", "step", "step of 20", "vae", "picture", "memory")
UNITS = {"memory": "GB, highest"}


@dataclass(frozen=True)
class Figure:
    ms: float  # a picture
    peak: int  # bytes of the device's memory


@dataclass
class Cell:
    """Figures of one engine, stage and case."""

    quiet: list[Figure] = field(default_factory=list)
    disturbed: list[Figure] = field(default_factory=list)  # while others compiled

    def median(self) -> tuple[float, bool]:
        """Milliseconds, and whether they were measured in quiet."""
        figures = self.quiet or self.disturbed
        return statistics.median(figure.ms for figure in figures), bool(self.quiet)

    def peak(self) -> int:
        return max(figure.peak for figure in self.quiet + self.disturbed)


class Results:
    """All cells by (way, stage, case); may be filled by several threads."""

    def __init__(self, folder: Path, ways: list[str]) -> None:
        self.folder, self.ways = folder, ways
        self.cells: dict[tuple, Cell] = {}
        self.notes: list[str] = []
        self._lock = threading.RLock()

    def add(self, way: str, stage: str, case, figure: Figure, quiet: bool) -> None:
        with self._lock:
            cell = self.cells.setdefault((way, stage, case), Cell())
            (cell.quiet if quiet else cell.disturbed).append(figure)
            self.write()

    def note(self, text: str) -> None:
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)
            self.write()

    def write(self, with_plot: bool = False) -> None:
        with self._lock:
            (self.folder / "gpu.md").write_text(markdown(self) + "\n", encoding="utf-8")
            rows = [
                {"way": way, "stage": stage} | vars(case) | {"ms": [f.ms for f in cell.quiet]}
                | {"disturbed_ms": [f.ms for f in cell.disturbed], "peak": cell.peak()}
                for (way, stage, case), cell in self.cells.items()
            ]  # fmt: skip
            text = json.dumps({"notes": self.notes, "rows": rows}, indent=1) + "\n"
            (self.folder / "gpu.json").write_text(text, encoding="utf-8")
            if with_plot:
                picture(self, self.folder / "gpu.png")


def entry(results: Results, way: str, row: str, case) -> tuple[str, float | None]:
    """What a table shows, and the number behind it."""
    cell = results.cells.get((way, "picture" if row == "memory" else row, case))
    if cell is None:
        return "-", None
    if row == "memory":
        return f"{cell.peak() / 1e9:.2f}", cell.peak() / 1e9
    ms, quiet = cell.median()
    text = f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"
    return (text if quiet else f"[{text}]"), ms


def markdown(results: Results) -> str:
    """One table; the last column is the best peer over ours."""
    cases = list(dict.fromkeys(key[2] for key in results.cells))
    ways = [way for way in results.ways if any(key[0] == way for key in results.cells)]
    out = ["| size | ms a picture | " + " | ".join(ways) + " | best peer / ours |"]
    out.append("|---" * (3 + len(ways)) + "|")
    for case in sorted(cases, key=lambda c: (c.batch, c.width * c.height)):
        for row in ROWS:
            cells = {way: entry(results, way, row, case) for way in ways}
            if all(value is None for _, value in cells.values()):
                continue
            peers = [v for way, (_, v) in cells.items() if way != "ours" and v is not None]
            ours = cells.get("ours", ("", None))[1]
            factor = f"{min(peers) / ours:.2f}" if peers and ours else "-"
            texts = " | ".join(text for text, _ in cells.values())
            label = f"{row}, {UNITS[row]}" if row in UNITS else row
            out.append(f"| {case.label} | {label} | {texts} | {factor} |")
    return "\n".join(out + [""] + [f"- {note}" for note in results.notes])


def picture(results: Results, path: Path) -> None:
    """Time and memory of a picture against pixels, one at a time; nothing without matplotlib."""
    time_: plot.Series = {}
    memory: plot.Series = {}
    for (way, stage, case), cell in results.cells.items():
        if stage == "picture" and case.batch == 1:
            pixels = case.width * case.height
            time_.setdefault(way, []).append((pixels, cell.median()[0]))
            memory.setdefault(way, []).append((pixels, cell.peak() / 1e9))
    if not time_:
        return
    try:
        plot.draw([("ms a picture", time_), ("GB of the device's memory", memory)], path)
    except ImportError:
        results.note("no plot: matplotlib is not installed")
