# SPDX-License-Identifier: Apache-2.0
"""The converter as a program: how it starts, where it writes, what it leaves when it cannot."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bonsai_convert import cli, gguf
from minimal import WEIGHTS
from test_convert import fails

ROOT = Path(__file__).resolve().parents[2]


def test_unwritable_outputs(checkpoint, tmp_path, capsys, monkeypatch):
    assert "a directory" in fails(capsys, checkpoint, "-o", tmp_path)
    out = tmp_path / "m.gguf"
    assert "--report" in fails(capsys, checkpoint, "-o", out, "--report", tmp_path, code=2)
    weights = checkpoint / WEIGHTS["vae"]
    before = weights.read_bytes()
    assert "belongs to the source" in fails(capsys, checkpoint, "-o", weights)
    assert weights.read_bytes() == before
    assert "cannot write there" in fails(capsys, checkpoint, "-o", tmp_path / "no" / "m.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda _: usage)
    text = fails(capsys, checkpoint, "-o", tmp_path / "m.gguf")
    assert "1.00 kB free, the model file needs" in text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
def test_a_device_is_not_replaced(checkpoint, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in fails(capsys, checkpoint, "-o", pipe)
    assert pipe.is_fifo()


def test_write_error_in_the_middle(checkpoint, tmp_path, capsys, monkeypatch):
    written = []

    def full(self, data):
        written.append(1)
        if len(written) > 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.Writer, "write", full)
    monkeypatch.setattr(gguf.Writer, "end_tensor", lambda self: None)
    text = fails(capsys, checkpoint, "-o", tmp_path / "m.gguf")
    assert "the disk is full" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(checkpoint, tmp_path, number):
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT / 'convert')!r})\n"
        "from bonsai_convert import cli, stream\n"
        "encode = stream.encode\n"
        "stream.encode = lambda *a: (time.sleep(0.2), encode(*a))[1]\n"
        f"sys.exit(cli.main([{str(checkpoint)!r}, '-o', {str(tmp_path / 'm.gguf')!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".m.gguf.*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_launcher_of_the_checkout(checkpoint, tmp_path):
    """`python convert/convert.py` from anywhere, with nothing but numpy installed."""
    script = ROOT / "convert" / "convert.py"
    done = subprocess.run(
        [sys.executable, script, checkpoint, "-o", "m.gguf"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "14 low-bit tensors decoded again" in done.stdout
    assert (tmp_path / "m.gguf").is_file()


def test_only_numpy_is_imported():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'convert')!r})\n"
        "import bonsai_convert.cli\n"
        "print(sorted({'torch', 'safetensors', 'huggingface_hub', 'gguf'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_missing_numpy_is_a_sentence(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('no', name='numpy')")
    script = ROOT / "convert" / "convert.py"
    done = subprocess.run(
        [sys.executable, script, "--version"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().endswith("'numpy' is needed: pip install numpy")
