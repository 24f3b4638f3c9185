# SPDX-License-Identifier: Apache-2.0
"""doctor: does this machine compute rightly?"""

from __future__ import annotations

import json
import subprocess

import pytest
from support import native

OPERATIONS = (
    "linear rms_norm layer_norm group_norm head_norm_rope attention silu swiglu affine embed_rows "
    "conv2d tiny"
).split()
TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q1_0 PQ2_0 PTQ1_0".split()


def test_text(cli):
    result = cli("doctor", env={"BONSAI_MODEL": ""})  # needs no model
    assert result.code == 0 and result.err == "", result
    for part in ("processor: ", "CPU levels: generic yes", "memory: ", "tested: cpu"):
        assert part in result.out
    passed, of = next(line for line in result.out.splitlines() if "checks passed" in line).split()[
        :3:2
    ]
    assert passed == of
    assert cli.files() == []
    assert cli("doctor", "-q").out == ""


def test_json(cli):
    report = json.loads(cli("doctor", "--json", "-t", "1").out)
    assert report["failures"] == 0 and report["seconds"] > 0
    assert report["devices"][0]["id"] == "cpu" and report["memory_total"] > 0
    assert report["cpu_levels"][0] == {"name": "generic", "available": True}
    assert report["tested"]["threads"] == 1
    names = [check["name"] for check in report["checks"]]
    assert {name.split()[0].rstrip(",") for name in names} == set(OPERATIONS)
    for precision in ("fast", "exact"):
        assert {f"linear {t} {precision}" for t in TYPES} < set(names)
        assert f"tiny picture {precision}" in names
    for check in report["checks"]:
        assert check["passed"] and check["message"] == ""
        assert 0 <= check["error"] <= check["allowed"] and check["seconds"] >= 0


def test_every_level_of_the_processor(cli):
    levels = json.loads(cli("doctor", "--json").out)["cpu_levels"]
    for level in levels:
        result = cli("doctor", "--json", env={"BONSAI_CPU": level["name"]})
        if level["available"]:
            assert json.loads(result.out)["tested"]["features"] == level["name"]
        else:
            assert result.code == 3 and level["name"] in result.err


def test_wrong_usage(cli):
    for arguments, message in (
        (["doctor", "--device", "abacus:0"], "abacus:0"),
        (["doctor", "model.gguf"], "doctor takes options only"),
        (["doctor", "-p", "x"], "--prompt has no meaning for doctor"),
        (["docter"], "did you mean doctor"),
    ):
        result = cli(*arguments)
        assert result.code == 2 and message in result.err, result


@pytest.mark.parametrize("operation", ["linear", "attention", "conv2d"])
def test_a_device_that_errs_is_found(cli, operation):
    try:
        program = native.program("bonsai-cli-faulty")
    except native.NativeError as error:
        pytest.skip(f"the faulty program is built where the linker can: {error}")
    run = {"capture_output": True, "text": True, "timeout": 60, "cwd": cli.folder}
    env = cli.environment(BONSAI_TEST_FAULT=operation)
    done = subprocess.run([program, "doctor", "--json"], env=env, **run)
    report = json.loads(done.stdout)
    wrong = {
        check["name"].split()[0].rstrip(",") for check in report["checks"] if not check["passed"]
    }
    assert operation in wrong and wrong <= {operation, "tiny"}
    assert done.returncode == 1 and f"{report['failures']} checks failed" in done.stderr
    shown = subprocess.run([program, "doctor", "-q"], env=env, **run)
    assert shown.returncode == 1 and "WRONG" in shown.stdout and "expected" in shown.stdout
    healthy = cli.environment(BONSAI_TEST_FAULT="none")
    assert subprocess.run([program, "doctor"], env=healthy, **run).returncode == 0
