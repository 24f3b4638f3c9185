# SPDX-License-Identifier: Apache-2.0
"""tests/data/hostile/expected.tsv as test parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "data" / "hostile"


def rows(*readers: str) -> list:
    """(path, reader, words) of the files for these readers; none given: of those that name a
    place in a checkpoint."""
    lines = (FOLDER / "expected.tsv").read_text("utf-8").splitlines()[1:]
    found = []
    for file, reader, words in (line.split("\t") for line in lines):
        if reader in readers or (not readers and "/" in reader + "/" and "." in reader):
            found.append(pytest.param(FOLDER / file, reader, words, id=file))
    assert found
    return found


def is_one_line(text: str) -> bool:
    """A message for people: ends the only line, holds nothing that a terminal would obey."""
    body = text.removesuffix("\n")
    return body != "" and all(c >= " " and c != "\x7f" for c in body) and len(body) < 1500
