# SPDX-License-Identifier: Apache-2.0
"""progress=True: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time

from .types import Progress


class Bar:
    """Rewrites a line on standard error, at most ten times a second."""

    WIDTH = 24

    def __init__(self) -> None:
        self._shown = 0
        self._last = 0.0
        self._active = bool(sys.stderr) and sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self._active or (now - self._last < 0.1 and progress.fraction < 1):
            return
        self._last = now
        filled = round(progress.fraction * self.WIDTH)
        line = f"{progress.stage:12} [{'#' * filled:{self.WIDTH}}]"
        if progress.stage == "denoise":
            line += f" step {min(progress.step + 1, progress.steps)}/{progress.steps}"
        if progress.images > 1:
            line += f", picture {progress.image + 1}/{progress.images}"
        line += f", {progress.total_seconds:.1f} s"
        self._write(line)

    def close(self) -> None:
        if self._shown:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _write(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(line)
