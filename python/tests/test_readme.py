# SPDX-License-Identifier: Apache-2.0
"""The Python of README.md, as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import bonsai
from PIL import Image

README = Path(__file__).resolve().parents[2] / "README.md"


def test_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BONSAI_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 1
    names = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    assert "prompt: a red apple on a blue background\n" in bonsai.read_metadata("apple.png")
    assert [picture.size for picture in names["pictures"]] == [(384, 256)] * 4
    assert capsys.readouterr().out.count("mode=RGB") == 4
    assert names["features"].ndim == 2 and (tmp_path / "apple.gguf").exists()
    with Image.open("apple.png") as picture:
        assert picture.size == (256, 256)
