# SPDX-License-Identifier: Apache-2.0
"""The comparison on a GPU: who runs when and what the tables say.

Programs that invent figures stand for the engines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import native

PEERS = native.REPOSITORY / "bench" / "peers"
sys.path.insert(0, str(PEERS))

import gpu  # noqa: E402
import gpu_report  # noqa: E402
from gpu import Case  # noqa: E402
from gpu_report import Figure  # noqa: E402

WARM = (
    "cuda:0 fast 64x64, 4 steps, 9 pictures: text encoder 2.00 ms, step {step:.2f} ms, "
    "vae 3.00 ms, image 20.00 ms, peak 1500 MB, wall 20.50 ms, batch 1"
)
# "gemlite" never gets ready at 128x128; "compiled" has no memory for its decoder.
WORKER = """
import json, sys, time
way = sys.argv[2]
print(json.dumps({"device": "GPU", "torch": "2"}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if way == "gemlite" and ask["width"] == 128:
        time.sleep(60)
    ms = {"eager": 40.0, "compiled": 30.0, "gemlite": 80.0}[way] * ask["batch"]
    found = {"ms": ms, "runs": 3, "peak": 2 * 10**9, "took": 0.1}
    if way == "compiled" and ask["stage"] == "vae":
        found = {"error": "OutOfMemoryError: no"}
    print(json.dumps(found), flush=True)
"""


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def call(tmp_path):
    warm = script(
        tmp_path / "warm",
        f"import sys\nassert len(open(sys.argv[6]).readlines()) >= 4\n"
        f"print({WARM!r}.format(step=5 if sys.argv[5] == '4' else 4.5))",
    )
    worker = script(tmp_path / "python", WORKER)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, PEERS / "gpu.py", "--bonsai", warm, "model", "--python", worker]
        command += ["--out", tmp_path / "out", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


def test_whole_run(call, tmp_path):
    done = call("--sizes", "64x64,128x128", "--batch-size", "64x64", "--batches", "2",
                "--tuned", "64x64,128x128", "--budget", "12")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| 64x64 | step | 5.00 | 40.00 | 30.00 | 80.00 | 6.00 |" in lines
    assert "| 64x64 | step of 20 | 4.50 | - | - | - | - |" in lines
    assert "| 64x64 | vae | 3.00 | 40.00 | - | 80.00 | 13.33 |" in lines
    assert "| 64x64 | memory, GB, highest | 1.50 | 2.00 | 2.00 | 2.00 | 1.33 |" in lines
    assert "| 128x128 | picture | 20.50 | 40.00 | 30.00 | - | 1.46 |" in lines
    assert "| 64x64, 2 pictures | picture | 20.50 | 40.00 | - | - | 1.95 |" in lines
    assert "- compiled, vae 64x64: OutOfMemoryError: no" in lines
    assert any("gemlite" in line and "not ready in time" in line for line in lines)
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    (ours,) = (
        r for r in found["rows"] if (r["way"], r["stage"], r["width"]) == ("ours", "vae", 128)
    )
    assert ours["ms"] == [3.0, 3.0], "a figure each round"
    (many,) = (
        r for r in found["rows"] if r["way"] == "ours" and r["batch"] == 2 and r["stage"] == "vae"
    )
    assert many["ms"] == [3.0]
    assert (tmp_path / "out" / "gpu.md").read_text().strip() == done.stdout.strip()


def test_choosing(call):
    done = call("--ways", "eager", "--sizes", "64x64", "--batches", "", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "| size | ms a picture | eager | best peer / ours |" in done.stdout
    done = call("--ways", "gemlite", "--everywhere", "gemlite", "--sizes", "64x64", "--rounds", "1",
                "--tuned", "32x32", "--batch-size", "64x64", "--batches", "2")  # fmt: skip
    assert "| 64x64 | vae | 80.00 | - |" in done.stdout
    assert "| 64x64, 2 pictures | picture | 80.00 | - |" in done.stdout
    assert call("--ways", "ours,other").returncode == 2
    assert call("--everywhere", "other").returncode == 2
    assert call("--sizes", "big").returncode == 2


def test_failing_ours(call):
    done = call("--bonsai", "false", "model", "--ways", "ours", "--sizes", "64x64", "--batches", "")
    assert done.returncode == 0 and "- ours, 64x64: false model cuda:0" in done.stdout


def test_warm_without_wall():
    found = gpu.parse_warm(WARM.format(step=5).split(", wall")[0])
    assert found["picture"] == Figure(20.0, 1_500_000_000)
    with pytest.raises(ValueError, match="no such line"):
        gpu.parse_warm("no such line")


def test_cases():
    cases = gpu.cases_of("512x512,256x128", "1,2", "512x512")
    assert cases == [Case(512, 512), Case(256, 128), Case(512, 512, 2)]
    assert [case.label for case in cases] == ["512x512", "256x128", "512x512, 2 pictures"]


def test_disturbed_figures(tmp_path):
    """In brackets, until a quiet one is there, which counts alone."""
    results, case = gpu_report.Results(tmp_path, ["eager"]), Case(64, 64)
    results.add("eager", "step", case, Figure(150.0, 10**9), quiet=False)
    assert "| [150] |" in gpu_report.markdown(results)
    for ms in (9.0, 7.0, 8.0):
        results.add("eager", "step", case, Figure(ms, 10**9), quiet=True)
    assert "| 8.00 |" in gpu_report.markdown(results)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots are drawn with matplotlib: install it")
    results = gpu_report.Results(tmp_path, ["ours"])
    for side in (64, 128):
        results.add("ours", "picture", Case(side, side), Figure(float(side), 10**9), quiet=True)
    results.write(with_plot=True)
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
