# SPDX-License-Identifier: Apache-2.0
"""bonsai-cli on tests/data/hostile: exit code 3 and one line that names the cause, at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.hostile import FOLDER, is_one_line, rows  # noqa: E402


def refused(cli, *arguments) -> str:
    result = cli(*arguments, timeout=20)
    assert result.code == 3, f"{result.code}: {result.err}"
    assert result.out == "" and is_one_line(result.err), repr(result.err)
    assert cli.files() == []
    return result.err


@pytest.mark.parametrize("path, reader, words", rows("gguf", "model", "verify", "png"))
def test_refused_in_one_line(cli, path, reader, words):
    command = {
        "gguf": ["info", path],
        "model": ["-m", path, "-p", "a tree", "--size", "64x64"],
        "verify": ["verify", path],
        "png": ["--from", path],
    }[reader]
    error = refused(cli, *command)
    assert words in error and path.name in error


@pytest.mark.parametrize("path, reader, words", rows("gguf"))
def test_drawing_gives_the_same_words(cli, path, reader, words):
    assert words in refused(cli, "-m", path, "-p", "a tree")


@pytest.mark.parametrize("path, reader, words", rows("dit", "qwen"))
def test_parts_of_others_are_described_and_not_drawn_with(cli, path, reader, words):
    """What bonsai-convert refuses is a good container."""
    described = cli("info", path)
    assert described.code == 0 and "GGUF version 3" in described.out
    assert is_one_line(refused(cli, "-m", path, "-p", "a tree"))
    assert "no hashes" in refused(cli, "verify", path)


def test_a_model_cut_at_any_byte_of_its_header(cli):
    whole = (FOLDER / "model" / "tensors-none.gguf").read_bytes()
    for size in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 40]:
        cut = cli.folder.parent / f"cut-{size}.gguf"
        cut.write_bytes(whole[:size])
        refused(cli, "info", cut)
        cut.unlink()
