# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the converter's tests; nothing here needs torch or the engine."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "convert"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import minimal  # noqa: E402


@pytest.fixture(scope="session")
def formats():
    """Bytes written by other libraries, with the truth beside them."""
    return ROOT / "tests" / "data" / "formats"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Kind -> checkpoint directory, made once; read only."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in ("ternary", "binary", "dense"):
        minimal.write_checkpoint(root / kind, kind)
    return root


@pytest.fixture(params=["ternary", "binary", "dense"])
def any_checkpoint(request, originals):
    """(kind, directory) of each kind of checkpoint; read only."""
    return request.param, originals / request.param


@pytest.fixture
def checkpoint(originals, tmp_path):
    """A ternary checkpoint that the test may damage."""
    return Path(shutil.copytree(originals / "ternary", tmp_path / "checkpoint"))


@pytest.fixture
def binary_checkpoint(originals, tmp_path):
    return Path(shutil.copytree(originals / "binary", tmp_path / "binary"))


@pytest.fixture
def dense_checkpoint(originals, tmp_path):
    return Path(shutil.copytree(originals / "dense", tmp_path / "dense"))
