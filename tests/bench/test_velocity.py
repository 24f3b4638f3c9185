# SPDX-License-Identifier: Apache-2.0
"""The tool that compares velocities: its bounds and its words, and one checkpoint through it."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from support import native, reference

BENCH = native.REPOSITORY / "bench"
sys.path.insert(0, str(BENCH))

import velocity  # noqa: E402
from velocity import Row  # noqa: E402


@pytest.mark.parametrize(
    ("on", "precision", "error", "good"),
    [
        ("cpu:avx2", "fast", 0.0129, True),
        ("cpu:avx2", "fast", 0.0131, False),
        ("cuda:0", "fast", 0.0159, True),
        ("cuda:0", "fast", 0.0161, False),
        ("cuda:0", "exact", 0.9e-3, True),
        ("cpu", "exact", 1.1e-3, False),
        ("cpu", "fast", math.nan, False),
        ("cpu", "exact", math.inf, False),
    ],
)
def test_bounds(on, precision, error, good):
    assert Row("a", on, precision, error, bf16=0.01).good == good


def test_words():
    rows = [
        Row("one", "cpu", "fast", 0.011, 0.01),
        Row("one", "cpu", "exact", 2e-6, 0.01),
        Row("two", "cpu", "fast", 0.030, 0.02),
    ]
    lines = velocity.table(rows).splitlines()
    assert lines[0] == "| checkpoint | bf16 | cpu fast | cpu exact |"
    assert lines[2:] == ["| one | 1.00 % | 1.10x | 2.0e-06 |", "| two | 2.00 % | **1.50x** | - |"]
    fast, exact = velocity.summary(rows).splitlines()
    assert fast == "cpu fast: at most 1.5 times bf16 (two), bound 1.3: MISSED"
    assert exact == "cpu exact: at most 2e-06 (one), bound 0.001: met"


def test_tiny(bonsai_probe, tmp_path):
    command = [
        sys.executable,
        BENCH / "velocity.py",
        "--probe",
        bonsai_probe,
        "--on",
        "cpu:generic",
    ]
    command += ["--case", "tiny-ternary-3000", "--json", tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    fast, exact = json.loads((tmp_path / "rows.json").read_text())
    assert fast["case"] == "fast-tiny-ternary-3000" and fast["on"] == "cpu:generic"
    assert fast["error"] > 100 * exact["error"] > 0


@pytest.mark.skipif(
    reference.unavailable() is not None, reason=f"live reference: {reference.unavailable()}"
)
def test_any_model(bonsai_probe, converted):
    """diffusers on the file's weights, the features and the noise of the run: exact is exact."""
    model = converted("tiny", weights="binary")
    command = [sys.executable, BENCH / "velocity_model.py", model, "--probe", bonsai_probe]
    done = subprocess.run(
        [*command, "--size", "64x48"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bf16, fast, exact = done.stdout.splitlines()[2].split("|")[2:5]
    assert 0.1 < float(bf16.strip(" %")) < 5
    assert 0.1 < float(fast.strip(" x")) <= 1.3
    assert 0 < float(exact) < 1e-4


def test_unknown_case():
    command = [sys.executable, BENCH / "velocity.py", "--probe", "probe", "--case", "huge"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "fast-tiny-ternary-0" in done.stderr
