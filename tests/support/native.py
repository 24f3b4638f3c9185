# SPDX-License-Identifier: Apache-2.0
"""Finds or builds the native programs, and runs the probe and the converter."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from support.cases import Case
from support.golden_file import read_arrays

REPOSITORY = Path(__file__).resolve().parents[2]


class NativeError(RuntimeError):
    """A native program could not be built, or failed; the text holds its output."""


def run_program(command: list[str | Path], timeout: float, **environment: str) -> str:
    """Run a program and return its standard output; raise with all it said if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=os.environ | environment,
            cwd=REPOSITORY,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{words[0]}: {error}") from error
    if done.returncode:
        shown = " ".join(word if len(word) < 200 else word[:197] + "..." for word in words)
        raise NativeError(
            f"exit code {done.returncode}: {shown}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


@lru_cache(maxsize=1)
def build_dir() -> Path:
    """$BONSAI_BUILD_DIR as it is, or build/pytest after building it (once in a process)."""
    given = os.environ.get("BONSAI_BUILD_DIR")
    if given:
        folder = Path(given).resolve()
        if not (folder / "CMakeCache.txt").is_file():
            raise NativeError(f"BONSAI_BUILD_DIR={given} is no CMake build directory")
        return folder
    cmake = shutil.which("cmake")
    if cmake is None:
        raise NativeError('cmake is not on PATH; install it with pip install ".[test]"')
    folder = REPOSITORY / "build" / "pytest"
    configure = [cmake, "-S", REPOSITORY, "-B", folder]
    configure += ["-DBONSAI_BUILD_TESTS=ON", "-DBONSAI_BUILD_BENCH=ON"]
    if not (folder / "CMakeCache.txt").is_file():
        configure.append("-DCMAKE_BUILD_TYPE=Release")
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
    run_program(configure, timeout=600)
    run_program([cmake, "--build", folder, "-j2"], timeout=3000)
    return folder


def for_windows() -> bool:
    """Whether the programs are those of Windows: what Windows does not have is not tested then."""
    given = os.environ.get("BONSAI_BUILD_DIR")
    return os.name == "nt" or bool(given and any(Path(given).rglob("bonsai-cli.exe")))


def emulated(path: Path) -> Path:
    """The program, or with $BONSAI_EMULATOR (a command and its options) a script that emulates it.

    For programs of another processor or system, which the kernel does not know how to start.
    """
    emulator = os.environ.get("BONSAI_EMULATOR")
    if not emulator:
        return path
    script = path.with_name(path.name + ".emulated")
    script.write_text(f'#!/bin/sh\nexec {emulator} {shlex.quote(str(path))} "$@"\n')
    script.chmod(0o755)
    return script


def program(name: str) -> Path:
    """The path of a built program."""
    folder = build_dir()
    for path in sorted([*folder.rglob(name), *folder.rglob(name + ".exe")]):
        if path.is_file() and os.access(path, os.X_OK):
            return emulated(path)
    raise NativeError(
        f"{name} is not in {folder}: build with -DBONSAI_BUILD_TESTS=ON -DBONSAI_BUILD_BENCH=ON"
    )


def ctest_tests() -> list[dict]:
    """The C++ tests that ctest knows, as its JSON describes them."""
    ctest = shutil.which("ctest")
    if ctest is None:
        raise NativeError("ctest is not on PATH; it comes with cmake")
    listing = run_program([ctest, "--test-dir", build_dir(), "--show-only=json-v1"], timeout=60)
    return json.loads(listing)["tests"]


def convert(source: Path, model: Path, *options: str) -> Path:
    """Run convert/convert.py in a process of its own."""
    script = REPOSITORY / "convert" / "convert.py"
    run_program([sys.executable, script, source, "-o", model, *options], timeout=600)
    return model


def device_under_test() -> str:
    """Where pictures are computed that any device has to get right."""
    return os.environ.get("BONSAI_TEST_DEVICE", "cpu")


def probe(
    executable: Path,
    model: Path,
    case: Case,
    out: Path,
    precision: str = "exact",
    threads: int = 2,
    device: str | None = None,
    **environment: str,
) -> dict[str, np.ndarray]:
    """Run the engine on a case; returns its intermediates by name, read from OUT/NAME.npy.

    Without a device: $BONSAI_TEST_DEVICE or the processor.
    """
    device = device or device_under_test()
    out.mkdir(parents=True, exist_ok=True)
    command = [executable, model, "--prompt", case.prompt]
    command += ["--width", str(case.width), "--height", str(case.height)]
    command += ["--steps", str(case.steps), "--seed", str(case.seed)]
    if case.guidance != 1.0:
        command += ["--guidance", str(case.guidance)]
    command += ["--precision", precision, "--noise-dtype", case.noise_dtype]
    command += ["--threads", str(threads), "--device", device, "--out", out]
    run_program(command, timeout=600, **environment)
    return read_arrays(out)
