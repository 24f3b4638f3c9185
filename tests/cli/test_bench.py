# SPDX-License-Identifier: Apache-2.0
"""The measuring programs: what they count and how they report; never how fast anything is."""

from __future__ import annotations

import csv
import io
import json
import subprocess

import pytest
from support import native


@pytest.fixture
def bench(converted):
    program, model = native.program("bonsai-bench"), converted("tiny", weights="ternary")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [program, "-m", model, "--size", "64x64", "--steps", "2", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run


def test_stages_and_ops(bench):
    done = bench("--ops", "-r", "2", "-t", "1,2", "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["threads"] for row in rows} == {1, 2}
    one = {row["what"]: row for row in rows if row["threads"] == 1}
    assert {"open", "text encoder", "step", "vae decode", "image, cold"} <= set(one)
    assert one["step"]["repeats"] == 4, "two steps of two pictures"
    assert all(row["seconds"] > 0 for row in rows)
    for stage in ("text encoder", "step", "vae decode"):
        ops = [row for name, row in one.items() if name.startswith(stage + ": ")]
        assert sum(row["giga_ops"] for row in ops) == pytest.approx(
            one[stage]["giga_ops"], rel=1e-3
        )
        assert one[stage]["peak_megabytes"] > 0


def test_work_is_counted(bench, converted):
    """Products of one step against the shapes in the file."""
    rows = json.loads(bench("--ops", "-r", "1", "-o", "json").stdout)
    linear = [r for r in rows if r["what"].startswith("step: linear")]
    assert linear
    for row in linear:
        m, k, n = map(int, row["what"].split()[-1].split("x"))
        calls = row["giga_ops"] * 1e9 / (2 * m * k * n)
        # Once a block and step, or once a run, spread over the steps.
        assert calls * 2 == pytest.approx(round(calls * 2), abs=1e-3) and calls > 0


def test_csv_and_compare(bench, tmp_path):
    table = list(csv.DictReader(io.StringIO(bench("-r", "1", "-o", "csv").stdout)))
    assert [row["what"] for row in table][:2] == ["open", "text encoder"]
    old = tmp_path / "old.json"
    old.write_text(bench("-r", "1", "-o", "json").stdout)
    text = bench("-r", "1", "--compare", str(old))
    assert text.returncode == 0 and "old/new" in text.stdout
    step = next(line for line in text.stdout.splitlines() if line.startswith("| step"))
    assert float(step.split("|")[-2]) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "64"], "--size 64"),
        (["-r", "0"], "-r 0"),
        (["--precision", "slow"], "slow"),
        (["--what"], "--what"),
        (["--compare", "missing.json"], "missing.json"),
    ],
)
def test_refuses(bench, arguments, words):
    done = bench(*arguments)
    assert done.returncode in (1, 2) and words in done.stderr and done.stdout == ""


WRONG = {
    "a lone prompt": ("bonsai-bench-warm", ["fast", "64x64", "1", "prompts.txt"], "1 lines"),
    "no prompts": ("bonsai-bench-warm", ["fast", "64x64", "1", "none.txt"], "0 lines"),
    "precision": ("bonsai-bench-warm", ["fsat", "64x64", "1", "prompts.txt"], "fast|exact"),
    "size": ("bonsai-bench-warm", ["fast", "64x60", "1", "prompts.txt"], "WIDTHxHEIGHT"),
    "no pixels": ("bonsai-bench-vae", ["fast", "0x0", "1"], "multiples of 16"),
    "odd size": ("bonsai-bench-vae", ["exact", "100x64", "1"], "multiples of 16"),
    "other precision": ("bonsai-bench-vae", ["f16", "64x64", "1"], "fast or exact"),
}


@pytest.mark.parametrize("program, arguments, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(converted, tmp_path, program, arguments, message):
    (tmp_path / "prompts.txt").write_text("a tree\n")
    command = [native.program(program), converted("tiny", weights="ternary"), "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr, done
