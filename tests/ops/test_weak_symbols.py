# SPDX-License-Identifier: Apache-2.0
"""The check for weak symbols sees one, in the objects of a level and only there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "weak_symbols.py"
SHARED = "inline int shared(int x) { return x + 1; }\nint (*user)(int) = shared;\n"
OWN = "static int own(int x) { return x + 1; }\nint (*user)(int) = own;\n"


@pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("nm") is None, reason="needs g++ and nm"
)
@pytest.mark.parametrize(
    ("folder", "source", "code"),
    [
        ("backends/cpu/avx2", SHARED, 1),
        ("backends/cpu/avx2", OWN, 0),
        ("backends/cpu/generic", SHARED, 1),  # no level at all: nothing was checked
        ("core", OWN, 1),
    ],
)
def test_weak_symbol_is_found(tmp_path: Path, folder: str, source: str, code: int) -> None:
    (tmp_path / folder).mkdir(parents=True)
    unit, made = tmp_path / "unit.cpp", tmp_path / folder / "unit.o"
    unit.write_text(source)
    subprocess.run(["g++", "-c", unit, "-o", made], check=True)
    run = subprocess.run([sys.executable, SCRIPT, "nm", made], capture_output=True, text=True)
    assert run.returncode == code, run.stdout + run.stderr
    assert ("weak symbol" in run.stdout) == (source is SHARED and "avx2" in folder)
