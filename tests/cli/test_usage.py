# SPDX-License-Identifier: Apache-2.0
"""Wrong usage and bad files: the exit code, and a message that says what to do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

HEADER = Path(__file__).resolve().parents[2] / "engine" / "include" / "bonsai.h"

WRONG = {
    "no prompt": ([], "no prompt"),
    "misspelt option": (["--promt", "x"], "did you mean --prompt"),
    "misspelt value": (["-p", "x", "--precision", "exakt"], "did you mean exact"),
    "misspelt command": (["inof", "x.gguf"], "did you mean info"),
    "help as a command": (["help"], "did you mean --help?"),
    "name of another program": (["-p", "x", "--cfg-scale", "3"], "here it is --guidance"),
    "negative prompt": (["-p", "x", "--negative-prompt", "y"], "leave it out"),
    "bare prompt": (["a red apple"], '-p "a red apple"'),
    "unknown letter": (["-Z"], "unknown option -Z"),
    "value missing": (["-p"], "--prompt needs a value"),
    "value is an option": (["-p", "--steps", "4"], "found the option --steps"),
    "switch with a value": (["-p", "x", "--json=yes"], "takes no value"),
    "steps 0": (["-p", "x", "--steps", "0"], "--steps 0: expected a whole number from 1"),
    "steps too many": (["-p", "x", "--steps", "1001"], "whole number from 1 to 1000"),
    "steps text": (["-p", "x", "--steps", "four"], "--steps four"),
    "steps huge": (["-p", "x", "--steps", "99999999999999999999"], "--steps 9999"),
    "seed negative": (["-p", "x", "--seed", "-1"], "--seed -1"),
    "seed above 64 bits": (["-p", "x", "--seed", "18446744073709551616"], "18446744073709551615"),
    "size 0": (["-p", "x", "--size", "0x64"], "(width) 0"),
    "size of one number": (["-p", "x", "--size", "64"], "768x512"),
    "size without a height": (["-p", "x", "--size", "64x"], "768x512"),
    "width 0": (["-p", "x", "-W", "0"], "--width 0"),
    "odd size": (
        ["-p", "x", "--size", "100x64"],
        "width 100: expected one of the multiples of 16 ",
    ),
    "nearest size": (["-p", "x", "-H", "1000"], "the nearest is 1008"),
    "guidance": (["-p", "x", "--guidance", "nan"], "--guidance nan"),
    "dtype": (["-p", "x", "--noise-dtype", "f64"], "f32, f16 or bf16"),
    "memory": (["-p", "x", "--max-memory", "lots"], "such as 3G"),
    "memory unit": (["-p", "x", "--max-memory", "3X"], "such as 3G"),
    "images": (["-p", "x", "-n", "0"], "--images 0"),
    "device": (["-p", "x", "--device", "cuda:7"], "cuda:7"),
    "two on stdout": (["-p", "x", "-o", "-", "-n", "2"], "takes one picture"),
    "json and picture on stdout": (["-p", "x", "-o", "-", "--json"], "--json"),
    "other format": (["-p", "x", "-o", "a.jpg"], "only PNG"),
    "other format in capitals": (["-p", "x", "-o", "a.JPG"], "only PNG"),
    "picture named as a model": (["-p", "x", "-o", "a.gguf"], "only PNG"),
    "empty output": (["-p", "x", "-o", ""], "--output is empty"),
    "draw option for info": (["info", "--steps", "4"], "--steps has no meaning for info"),
    "empty model": (["-m", "", "-p", "x"], "--model is empty"),
    "two models": (["info", "a.gguf", "b.gguf"], "unexpected argument b.gguf"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_usage(cli, arguments, message):
    result = cli(*arguments)
    assert message in result.err, result.err
    assert result.code in ([2, 3] if "--device" in arguments else [2])
    assert result.err.startswith("error: ") and result.out == ""
    assert cli.files() == []


@pytest.mark.posix
def test_prompt_that_is_not_utf8(cli):
    for options in (["-p", b"caf\xe9"], ["-p", "-"]):
        result = cli(*options, "--size", "64x64", stdin=b"caf\xe9")
        assert result.code == 2 and "UTF-8" in result.err, result.err
    result = cli("-p", "-", stdin=b"a\0b")
    assert result.code == 2 and "zero byte" in result.err


def test_no_model(cli):
    alone = cli.folder / "program"
    shutil.copy2(cli.program, alone)  # no share/bonsai near by
    cli.program = alone
    result = cli("-p", "x", env={"BONSAI_MODEL": ""})
    assert result.code == 2
    assert "-m MODEL.gguf" in result.err and "`bonsai-convert prism-ml" in result.err
    assert "?" not in result.err  # what a character that is not printed becomes


def test_bad_model_files(cli):
    whole = cli.model.read_bytes()
    files = {
        "missing.gguf": None,
        "empty.gguf": b"",
        "text.gguf": b"this is no model at all, it is a text of some length\n" * 10,
        "cut.gguf": whole[: len(whole) // 2],
        "head.gguf": whole[:20],
    }
    for name, data in files.items():
        path = cli.folder / name
        if data is not None:
            path.write_bytes(data)
        for arguments in (["-p", "x", "-m", path], ["verify", path]):
            result = cli(*arguments)
            assert result.code == 3, (name, result)
            assert name in result.err and result.out == ""
    assert all(name.endswith(".gguf") for name in cli.files())


def test_help_names_everything(cli):
    result = cli("--help")
    assert result.code == 0 and result.err == ""
    for word in ("--prompt", "--model", "--output", "--seed", "--from", "--json", "--dry-run"):
        assert word in result.out
    assert "Exit codes:" in result.out and "130" in result.out
    assert max(len(line) for line in result.out.splitlines()) <= 100


def test_version_is_that_of_the_header(cli):
    version = re.search(r'#define BONSAI_VERSION "(.+)"', HEADER.read_text())[1]
    assert cli("--version").out == f"bonsai-cli {version}\n"
