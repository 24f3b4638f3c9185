# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests/conftest.py, for the tests of the installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "tests" / "conftest.py"
_spec = importlib.util.spec_from_file_location("bonsai_shared_fixtures", _SHARED)
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)

model_cache = _shared.model_cache
checkpoint = _shared.checkpoint
converted = _shared.converted
build_dir = _shared.build_dir
bonsai_cli = _shared.bonsai_cli


@pytest.fixture(scope="session")
def model(converted) -> Path:
    return converted("tiny", weights="ternary")


@pytest.fixture(scope="session")
def shared_engine(model):
    from bonsai import Engine

    with Engine(model) as engine:
        yield engine
