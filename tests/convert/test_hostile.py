# SPDX-License-Identifier: Apache-2.0
"""The converter on tests/data/hostile: every file is refused in one line that names the cause."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bonsai_convert import cli, gguf
from bonsai_convert.errors import ConvertError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.hostile import is_one_line, rows  # noqa: E402


def test_the_files_are_those_of_the_script():
    script = ROOT / "tests" / "support" / "make_hostile.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def linked(originals, tmp_path):
    """A good checkpoint whose files may be replaced."""
    root = tmp_path / "checkpoint"
    for path in (originals / "ternary").rglob("*"):
        if path.is_file():
            target = root / path.relative_to(originals / "ternary")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path, target)
    return root


@pytest.mark.parametrize("path, place, words", rows())
def test_checkpoints(linked, tmp_path, capsys, path, place, words):
    (linked / place).unlink(missing_ok=True)
    if path.suffix == ".pt":  # it stands for all weights of its folder
        for weights in (linked / place).parent.glob("*.safetensors"):
            weights.unlink()
    (linked / place).write_bytes(path.read_bytes())
    output = tmp_path / "model.gguf"
    assert cli.main([str(linked), "-o", str(output)]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert is_one_line(captured.err) and captured.out == ""
    assert str(linked / place.split("/")[0]) in captured.err, "names the file or its folder"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("path, reader, words", rows("dit", "qwen"))
def test_parts_of_other_programs(originals, tmp_path, capsys, path, reader, words):
    root = originals / "dense"
    given = {"transformer": root / "transformer", "text-encoder": root / "text_encoder"}
    given["transformer" if reader == "dit" else "text-encoder"] = path
    options = [str(x) for k, v in given.items() for x in (f"--{k}", v)]
    output = tmp_path / "model.gguf"
    assert cli.main([*options, "--vae", str(root / "vae"), "-o", str(output)]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and path.name in captured.err
    assert is_one_line(captured.err) and captured.out == "" and not output.exists()


@pytest.mark.parametrize("path, reader, words", rows("gguf"))
def test_no_laxer_reader_of_model_files(path, reader, words):
    """Whatever the engine's reader refuses, the converter's refuses too."""
    with pytest.raises(ConvertError) as caught:
        gguf.Reader(path)
    assert is_one_line(str(caught.value)) and path.name in str(caught.value)


def test_verify_refuses_in_one_line(originals, capsys):
    path = ROOT / "tests" / "data" / "hostile" / "model" / "architecture-escape.gguf"
    assert cli.main([str(originals / "ternary"), "--verify", str(path)]) == 1
    assert is_one_line(capsys.readouterr().err)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize("place", ["vae/config.json", "tokenizer/tokenizer.json"])
def test_pipes_are_refused_at_once(linked, tmp_path, capsys, place):
    (linked / place).unlink()
    os.mkfifo(linked / place)
    assert cli.main([str(linked), "-o", str(tmp_path / "model.gguf")]) == 1
    assert "not a regular file" in capsys.readouterr().err


def test_long_files_are_not_read_to_the_end(linked, tmp_path, capsys):
    path = linked / "vae" / "config.json"
    path.unlink()
    with open(path, "wb") as f:
        f.truncate(1 << 40)
    assert cli.main([str(linked), "-o", str(tmp_path / "model.gguf")]) == 1
    assert "more than 1048576 bytes" in capsys.readouterr().err
