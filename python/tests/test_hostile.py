# SPDX-License-Identifier: Apache-2.0
"""The Python package on tests/data/hostile: its readers are those of the library."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import bonsai
import pytest

_SUPPORT = Path(__file__).resolve().parents[2] / "tests" / "support" / "hostile.py"
_spec = importlib.util.spec_from_file_location("bonsai_hostile_files", _SUPPORT)
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)


@pytest.mark.parametrize(
    "path, reader, words", hostile.rows("gguf", "model", "verify", "png"), ids=str
)
def test_refused(path, reader, words):
    call = {
        "gguf": bonsai.describe,
        "model": bonsai.Engine,
        "verify": bonsai.verify,
        "png": bonsai.read_metadata,
    }[reader]
    try:
        result = call(path)
    except (bonsai.ModelError, bonsai.UnsupportedError) as error:
        assert words in str(error) and hostile.is_one_line(str(error))
        return
    # The library reads the lines of a PNG; what they say is judged by who uses them.
    assert reader == "png" and result.startswith("prompt: a\n")


def test_a_file_cut_while_drawing(model, tmp_path):
    copy = tmp_path / "model.gguf"
    copy.write_bytes(model.read_bytes())

    def cut(_progress) -> None:
        with open(copy, "r+b") as file:
            file.truncate(5000)

    with bonsai.Engine(copy) as engine:
        with pytest.raises(bonsai.FileError, match="while in use"):
            engine.generate("a tree", width=64, height=64, steps=1, seed=1, progress=cut)
