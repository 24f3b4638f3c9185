# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all Python tests: native programs, test checkpoints, converted models."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import checkpoint as checkpoint_maker
from support import native
from support.configs import Recipe

# A shell starts what runs in the background with Ctrl-C ignored, and programs inherit that; tests
# send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The CMake build directory: $BONSAI_BUILD_DIR, or build/pytest built now."""
    return native.build_dir()


@pytest.fixture(scope="session")
def bonsai_cli(build_dir: Path) -> Path:
    return native.program("bonsai-cli")


@pytest.fixture(scope="session")
def bonsai_probe(build_dir: Path) -> Path:
    return native.program("bonsai-probe")


@pytest.fixture(scope="session")
def model_cache() -> Iterator[Path]:
    """Where checkpoints and models live: $BONSAI_TEST_CACHE, or a folder of this session.

    A kept cache has to be emptied by hand after a change to the converter.
    """
    kept = os.environ.get("BONSAI_TEST_CACHE")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="bonsai-models-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def checkpoint(model_cache: Path) -> Callable[..., Path]:
    """checkpoint(config, weights="dense", ...) -> directory; also takes a Recipe."""

    def make(config: str | Recipe, **options) -> Path:
        recipe = config if isinstance(config, Recipe) else Recipe(config, **options)
        folder = model_cache / f"{recipe.label}-{checkpoint_maker.source_hash()}"
        if not folder.is_dir():
            # Made beside and renamed, so that an interrupted run leaves no half checkpoint.
            scratch = Path(tempfile.mkdtemp(dir=model_cache))
            checkpoint_maker.make(recipe, scratch)
            scratch.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def converted(checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """converted(config, *convert_options, weights=..., ...) -> model file of that checkpoint."""

    def make(config: str | Recipe, *convert_options: str, **options) -> Path:
        folder = checkpoint(config, **options)
        tag = "".join(option.replace("--", "-") for option in convert_options)
        model = folder.with_name(f"{folder.name}{tag}.gguf")
        if not model.is_file():
            scratch = model.with_suffix(".part")
            scratch.unlink(missing_ok=True)
            native.convert(folder, scratch, *convert_options)
            scratch.rename(model)
        return model

    return make


@pytest.fixture(scope="session")
def release(model_cache: Path) -> Callable[[Recipe], None]:
    """release(recipe): free the disk space of a checkpoint and its models, unless they are kept."""

    def free(recipe: Recipe) -> None:
        if os.environ.get("BONSAI_TEST_CACHE"):
            return
        for path in model_cache.glob(f"{recipe.label}-{checkpoint_maker.source_hash()}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return free


def pytest_terminal_summary(terminalreporter) -> None:
    """Name every skipped test with its reason, whatever -r says."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"{len(skipped)} skipped")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.line(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")
