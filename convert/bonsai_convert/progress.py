# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar redrawn in place on a terminal, else a plain line now and then."""

from __future__ import annotations

import shutil
import sys
import time

_BAR = 24
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0


def size_text(n: float) -> str:
    """Bytes in decimal units, as file sizes are given everywhere in this project."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n:.0f} B"


def time_text(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes}:{s:02d}"


class Progress:
    """Counts source bytes. Use as a context manager, so that the bar's line is always ended."""

    def __init__(self, total: int, stream=None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._done = max(total, 1), 0
        self._start = self._last = time.monotonic()
        self._terminal = self._stream.isatty()
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def advance(self, nbytes: int, what: str) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._last >= (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS):
            self._last = now
            self._show(now - self._start, what)

    def _show(self, elapsed: float, what: str) -> None:
        part = min(self._done / self._total, 1.0)
        left = elapsed * (1 - part) / part if part else 0.0
        text = (
            f"{part:4.0%}  {size_text(self._done)} of {size_text(self._total)}  "
            f"{size_text(self._done / max(elapsed, 1e-9))}/s  {time_text(left)} left  {what}"
        )
        if not self._terminal:
            print(text, file=self._stream, flush=True)
            return
        filled = round(part * _BAR)
        line = f"[{'#' * filled}{'.' * (_BAR - filled)}] {text}"
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + line[:width].ljust(width))
        self._stream.flush()
        self._drawn = True

    def __exit__(self, *_) -> None:
        if self._drawn:
            self._stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._stream.flush()
