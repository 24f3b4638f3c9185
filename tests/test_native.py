# SPDX-License-Identifier: Apache-2.0
"""Runs the C++ tests: one pytest item for each test that ctest knows."""

from __future__ import annotations

import subprocess

import pytest
from support import native


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Building is part of collecting, because only the build knows its tests."""
    if "ctest" not in metafunc.fixturenames:
        return
    try:
        tests = native.ctest_tests()
    except native.NativeError as error:
        metafunc.parametrize("ctest", [{"error": str(error)}], ids=["build"])
        return
    metafunc.parametrize("ctest", tests, ids=[test["name"] for test in tests])


def test_ctest(ctest: dict) -> None:
    if "error" in ctest:
        pytest.fail(ctest["error"], pytrace=False)
    if "command" not in ctest:
        pytest.fail(f"{ctest['name']} has not been built", pytrace=False)
    properties = {item["name"]: item["value"] for item in ctest.get("properties", [])}
    done = subprocess.run(
        ctest["command"],
        cwd=properties.get("WORKING_DIRECTORY", native.build_dir()),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=properties.get("TIMEOUT", 900),
    )
    if done.returncode:
        tail = (done.stdout + done.stderr)[-6000:]
        pytest.fail(f"exit code {done.returncode}\n{tail}", pytrace=False)


def test_there_are_native_tests() -> None:
    assert native.ctest_tests(), "ctest lists no test: was the build made with BONSAI_BUILD_TESTS?"
