# SPDX-License-Identifier: Apache-2.0
"""The program as a user runs it: its own folder, a clean environment, a tiny model.

Tests marked `posix` are about things that Windows does not have; they are skipped when the program
is one of Windows, which $BONSAI_EMULATOR ("wine") runs.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import native

WINDOWS = native.for_windows()
SMALL = ["--size", "64x64", "--steps", "1"]


@dataclass
class Result:
    code: int
    out: str
    err: str
    raw: bytes  # standard output as it came


@dataclass
class Cli:
    program: Path
    model: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        return kept | {"BONSAI_MODEL": str(self.model), "TERM": "xterm"} | more

    def __call__(self, *arguments: str | Path | bytes, stdin: bytes = b"", **options) -> Result:
        env = self.environment(**options.pop("env", {}))
        done = subprocess.run(
            [self.program, *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=env,
            timeout=options.pop("timeout", 120),
            **options,
        )

        def text(stream: bytes) -> str:
            decoded = stream.decode("utf-8", "replace")
            return decoded.replace("\r\n", "\n") if WINDOWS else decoded

        return Result(done.returncode, text(done.stdout), text(done.stderr), done.stdout)

    def draw(self, *arguments: str | Path, **options) -> Result:
        """Draws 64 x 64 pixels in one step unless the arguments say otherwise; must succeed."""
        given = [str(a) for a in arguments]
        extra = [] if "--from" in given or "--size" in given else SMALL
        result = self(*arguments, *extra, **options)
        assert result.code == 0, result.err
        return result

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if WINDOWS and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="not for Windows"))


@pytest.fixture
def cli(bonsai_cli: Path, converted, tmp_path: Path) -> Cli:
    folder = tmp_path / "work"
    folder.mkdir()
    return Cli(bonsai_cli, converted("tiny", weights="ternary"), folder)
