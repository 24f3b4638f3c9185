# SPDX-License-Identifier: Apache-2.0
"""Lines on logarithmic axes against the number of pixels; needs matplotlib."""

from __future__ import annotations

from pathlib import Path

Series = dict[str, list[tuple[float, float]]]  # name of an engine -> (pixels, value)


def few_decades(series: Series) -> bool:
    """Whether values between powers of ten need numbers, too."""
    values = [y for rows in series.values() for _, y in rows]
    return max(values) < 30 * min(values)


def draw(panels: list[tuple[str, Series]], path: Path) -> None:
    """One panel beside the other, each with its title; the ending of path decides the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for axis, (title, series) in zip(axes[0], panels):  # noqa: B905
        for name, rows in series.items():
            axis.plot(*zip(*sorted(rows)), marker="o", label=name)  # noqa: B905
        pixels = sorted({x for rows in series.values() for x, _ in rows})
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(pixels, [f"{x / 1000:.0f}k" for x in pixels])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}" if few_decades(series) else "")
        axis.set_xlabel("pixels")
        axis.set_title(title)
        axis.grid(True, which="both", linewidth=0.3)
    axes[0][0].legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
