# SPDX-License-Identifier: Apache-2.0
"""The comparison with other engines: how runs are cut into stages, never how fast anything is.

Programs that print the words of the peers, and burn processor time in one stage only, stand for
them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import configs, layout, native

PEERS = native.REPOSITORY / "bench" / "peers"
sys.path.insert(0, str(native.REPOSITORY / "convert"))

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

SD = (
    "Diffusion model weight type stat: q1_0: 100",
    "loading tensors completed, taking 1s",
    "get_learned_condition completed",
    "sampling completed",
    "decode_first_stage completed",
)
FLUX = (
    "Loading VAE... done (0.1s)",
    "Encoding text...\r verbose\n done (1.0s)",
    "Step 1/1 ddF",
    "  Total denoising: 10.0 ms (0.01 s)",
    "Decoding image...",
    " done (2.0s)",
)


def fake(path: Path, lines: tuple[str, ...], busy_before: int, code: int = 0) -> Path:
    """A program that says the lines and works for 0.3 s before one of them."""
    path.write_text(
        f"""#!{sys.executable}
import sys, time
if "--version" in sys.argv:
    sys.exit(print("fake 1.2"))
for i, line in enumerate({lines!r}):
    while i == {busy_before} and time.process_time() < 0.4:
        pass
    print(line, flush=True, end="" if line.endswith("...") else "\\n")
sys.exit({code})
"""
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def run(converted):
    bench, model = native.program("bonsai-bench"), converted("tiny", weights="ternary")

    def call(*arguments: str | Path) -> subprocess.CompletedProcess:
        command = [sys.executable, PEERS / "run.py", "--bonsai", bench, model, "--size", "32x32"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)

    return call


def test_stages(run, tmp_path):
    sd, flux = fake(tmp_path / "sd", SD, 3), fake(tmp_path / "flux", FLUX, 5)
    out, plot = tmp_path / "all.json", tmp_path / "plot.png"
    drawn = ("--plot", plot) if importlib.util.find_spec("matplotlib") else ()
    done = run(
        "--peer", "sd.cpp one", sd, "--peer", "flux2.c two", flux, "--sgemm", "--rounds", "2",
        "--threads", "1", "--size", "32x32,64x32", "--json", out, *drawn,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["versions"] == {"sd.cpp one": "fake 1.2", "flux2.c two": "fake 1.2"}
    assert set(found["runs"]) == {"32x32", "64x32"}
    for runs in found["runs"].values():
        assert {name: len(list_) for name, list_ in runs.items()} == {
            "bonsai": 2, "sd.cpp one": 2, "flux2.c two": 2,
        }  # fmt: skip
        for name, busy in (("sd.cpp one", "steps"), ("flux2.c two", "vae decode")):
            for one in runs[name]:
                stages = {k: v for k, v in one["cpu"].items() if k not in ("process", "load")}
                assert set(stages) == {"text encoder", "steps", "vae decode"}
                assert max(stages, key=stages.get) == busy
                assert one["wall"]["process"] >= sum(
                    v for k, v in one["wall"].items() if k != "process"
                )
                assert one["peak"] > 1e6
        assert all(one["cpu"]["steps"] > 0 for one in runs["bonsai"])
    for shapes in found["products"].values():
        assert len(shapes) == 3
        for rounds in shapes.values():
            assert len(rounds) == 2 and min(min(r.values()) for r in rounds) > 0
    assert "weight type stat: q1_0" in done.stdout and "sd.cpp one" in done.stdout
    assert not drawn or plot.read_bytes().startswith(b"\x89PNG")


def test_held_up(tmp_path):
    """A watcher that was stopped says so; one that could look all the time does not."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "import engines, report\n"
        "log = engines.Path(sys.argv[3])\n"
        "run = engines.run_peer(engines.KINDS['sd.cpp'], [sys.argv[2]], log, 1)\n"
        "run.held = float(sys.argv[4]) or run.held\n"
        "print(report.stage_table({'bonsai': [run]}, 1))"
    )
    program = fake(tmp_path / "sd", SD, 3)
    for held, said in (("0", False), ("7", True)):
        command = [sys.executable, "-c", code, PEERS, program, tmp_path / "log", held]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert ("held up for 7 s" in done.stdout) == said


def test_late_lines():
    """Read 100 s late: the program's own seconds cut its time, and what it did not say is held."""
    sys.path.insert(0, str(PEERS))
    import engines

    def cut(*lines: str) -> engines.Run:
        run = engines.Run()
        stages = engines.Stages(engines.KINDS["sd.cpp"], 0.0, run)
        stages.hear("loading tensors completed, taking 2.0s\n", *looks(2.0, 2.5, 2.6))
        stages.hear("".join(line + "\n" for line in lines), *looks(4.0, 104.0, 204.0))
        return run

    def looks(before: float, now: float, cpu: float) -> tuple:
        return engines.Look(before, 4.0 if before > 3 else 2.0), engines.Look(now, cpu)

    # From 4 to 104 s two threads worked: 2 processor seconds a second.
    said = cut("get_learned_condition completed, taking 12.0s", "sampling completed, taking 50.0s")
    assert said.held == 0
    assert said.wall == pytest.approx({"load": 2.5, "text encoder": 10.0, "steps": 50.0})
    assert said.cpu["text encoder"] == pytest.approx(4.0 + 2 * 8.5 - 2.6)
    assert said.cpu["steps"] == pytest.approx(100.0)
    silent = cut("get_learned_condition completed")
    assert silent.held == pytest.approx(100.0)


def test_limit(run, tmp_path):
    """A peer that takes too long is ended, and what it took by then is a lower bound."""
    out = tmp_path / "all.json"
    done = run("--peer", "sd.cpp", fake(tmp_path / "sd", SD, 3), "--limit", "0.2", "--json", out)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(out.read_text())["runs"]["32x32"]["sd.cpp"]
    assert one["unfinished"] == "steps" and 0.05 < one["cpu"]["steps"] <= one["cpu"]["process"]
    assert "vae decode" not in one["cpu"] and "| 1 step | sd.cpp | > 0." in done.stdout


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [(SD, 3, "ended with 3"), (SD[:3], 0, "sampling completed")],
)
def test_failing_peer(run, tmp_path, lines, code, words):
    done = run("--peer", "sd.cpp", fake(tmp_path / "sd", lines, -1, code))
    assert done.returncode == 1 and words in done.stderr and lines[-1] in done.stderr


@pytest.mark.parametrize("name", ["other 1", ""])
def test_unknown_peer(run, name):
    done = run("--peer", name, "program")
    assert done.returncode == 2 and "sd.cpp, flux2.c" in done.stderr


def make_weights(*arguments: str | Path) -> None:
    command = [sys.executable, PEERS / "make_weights.py", *arguments, "--config", "tiny"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0"])
def test_weights_for_sd_cpp(tmp_path, kind):
    """As many weights as our own checkpoint has, none of them all zeros or not a number."""
    from bonsai_convert import gguf

    make_weights("sd.cpp", tmp_path, "--type", kind)
    reader = gguf.Reader(tmp_path / f"dit-{kind.lower()}.gguf")
    config = configs.transformer_config(configs.Recipe("tiny"))
    ours = dict(layout.transformer_tensors(config))
    assert sum(math.prod(t.shape) for t in reader.tensors.values()) == sum(
        math.prod(shape) for shape in ours.values()
    )
    raw = np.memmap(reader.path, np.uint8)
    for name, tensor in reader.tensors.items():
        data = raw[tensor.offset : tensor.offset + tensor.nbytes]
        assert np.mean(data == 0) < 0.6, name
        if tensor.type.block > 1:
            scales = data.reshape(-1, tensor.type.bytes)[:, :2].copy().view(np.float16)
            assert np.all(scales > 0) and np.all(np.isfinite(scales)), name
        if tensor.type.name == "Q2_0":
            codes = data.reshape(-1, tensor.type.bytes)[:, 2:]
            assert not np.any(codes & (codes >> 1) & 0x55), "a code of 3"
    assert reader.tensors["single_blocks.0.linear1.weight"].type.name == kind
    assert len(gguf.Reader(tmp_path / "llm-q8_0.gguf").tensors) == 28 * 11 + 2


def test_weights_for_flux2_c(tmp_path):
    make_weights("flux2.c", tmp_path)
    made = {os.path.relpath(p, tmp_path) for p in tmp_path.rglob("*.safetensors")}
    assert made == {
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
