# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the converter's tests; nothing here needs torch or the engine."""

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


@pytest.fixture(scope="session", params=["ternary", "binary", "dense"])
def any_checkpoint(request, tmp_path_factory):
    """(kind, directory) of each kind of checkpoint; read only."""
    root = tmp_path_factory.mktemp(request.param)
    minimal.write_checkpoint(root, request.param)
    return request.param, root


@pytest.fixture
def checkpoint(tmp_path):
    """A ternary checkpoint that the test may damage."""
    root = tmp_path / "checkpoint"
    minimal.write_checkpoint(root, "ternary")
    return root


@pytest.fixture
def dense_checkpoint(tmp_path):
    root = tmp_path / "dense"
    minimal.write_checkpoint(root, "dense")
    return root
