# SPDX-License-Identifier: Apache-2.0
"""Engine("hub:owner/name") takes the file of the cache; tests/convert/test_cache.py makes one."""

import sys
from pathlib import Path

import bonsai
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "convert"))
pytest.importorskip("filelock")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    return tmp_path


def test_what_the_cache_has(cache, converted):
    model = cache / "hub" / "some-owner--some.model" / "model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(Path(converted("tiny", weights="ternary")).read_bytes())
    with bonsai.Engine("hub:some-owner/some.model", threads=1) as engine:
        assert engine.info.variant == "ternary"


def test_failures_are_errors_of_files(cache):
    with pytest.raises(bonsai.FileError, match="cannot be reached"):
        bonsai.Engine("hub:some-owner/other")
    with pytest.raises(bonsai.FileError, match="expected hub:owner/name"):
        bonsai.Engine("hub:other")
