# SPDX-License-Identifier: Apache-2.0
"""Bad days: signals at any moment, full and read-only disks, too little memory, rivals."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

DRAW = ["-p", "x", "-s", "1", "--size", "64x64", "--steps", "4", "-t", "1"]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def start(cli, *arguments: str, **options) -> subprocess.Popen:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [cli.program, *arguments], cwd=cli.folder, env=cli.environment(), **(quiet | options)
    )


def test_signals_at_random_moments(cli):
    """200 times: whatever is there afterwards is whole, and nothing else is there."""
    whole, seconds = set(), []
    for seed in ("1", "2"):
        began = time.monotonic()
        cli.draw(*DRAW, "-s", seed, "-o", "a.png")
        seconds.append(time.monotonic() - began)
        whole.add((cli.folder / "a.png").read_bytes())
    moments = random.Random(7)
    outputs = [["-o", "a.png"], [], ["-n", "2"], ["-o", "old.png"]]
    codes = []
    for i in range(200):
        for name in cli.files():
            (cli.folder / name).unlink()
        (cli.folder / "old.png").write_bytes(b"old")
        number = moments.choice(list(SIGNALS))
        process = start(cli, *DRAW, *outputs[i % len(outputs)])
        time.sleep(moments.uniform(0, 1.1 * min(seconds)))
        for _ in range(moments.choice([1, 1, 2])):
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        codes.append(process.returncode)
        # By the signal itself when it came before the program had begun.
        assert process.returncode in (0, SIGNALS[number], -number), said
        for name in cli.files():
            found = (cli.folder / name).read_bytes()
            assert found in whole or (name == "old.png" and found == b"old"), (name, said)
        if process.returncode == 0 and outputs[i % len(outputs)] != ["-o", "old.png"]:
            assert len(cli.files()) > 1
    stopped = sum(code in SIGNALS.values() for code in codes)
    assert stopped >= 20 and codes.count(0) >= 1, codes


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_waiting_for_the_prompt(cli, number):
    reader, writer = os.pipe()
    process = start(cli, "-p", "-", "-v", stdin=reader)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    os.close(reader)
    os.close(writer)
    assert process.returncode in (SIGNALS[number], -number) and cli.files() == []


def test_signals_while_nobody_reads_the_picture(cli):
    """A picture larger than a pipe holds: the second signal ends the wait."""
    reader, writer = os.pipe()
    process = start(cli, *DRAW, "--size", "256x256", "--steps", "1", "-o", "-", stdout=writer)
    for line in process.stderr:
        if b"vae" in line:
            break
    time.sleep(0.5)
    for _ in range(40):
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    process.communicate(timeout=60)
    os.close(reader)
    os.close(writer)
    assert process.returncode == 143


def test_signals_while_nobody_opens_the_pipe(cli):
    """-o names a pipe without a reader."""
    os.mkfifo(cli.folder / "pipe")
    process = start(cli, *DRAW, "-o", "pipe")
    for line in process.stderr:
        if b"vae" in line:
            break
    for _ in range(40):
        if process.poll() is not None:
            break
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=60)
    assert process.returncode == 143 and cli.files() == ["pipe"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor"],
        ["info"],
        ["info", "--json"],
        ["--help"],
        ["--list-devices"],
        ["--dry-run", *DRAW],
    ],
)
def test_texts_for_a_full_disk(cli, arguments):
    """Longer ones than a buffer too."""
    with open("/dev/full", "wb") as full:
        process = start(cli, *arguments, stdout=full)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and b"cannot write to standard output" in said, said


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_in_the_self_test(cli, number):
    """It writes nothing that could be half done: the first signal ends it."""
    process = start(cli, "doctor", "-t", "1")
    while not handles(process.pid, number):
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == SIGNALS[number]


def handles(process: int, number: int) -> bool:
    """Whether its handlers are installed."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def mount(folder: Path, options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder])
    if done.returncode != 0:
        pytest.skip("may not mount a file system here")


@pytest.fixture
def small_disk(cli):
    folder = cli.folder / "disk"
    folder.mkdir()
    mount(folder, "size=8k")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_file_system(cli, small_disk):
    for output in ("disk", "disk/a.png"):
        result = cli(*DRAW, "-o", output)
        assert result.code == 1 and "free some space" in result.err, result
        assert list(small_disk.iterdir()) == [] and result.out == ""


def test_read_only_file_system(cli, small_disk):
    (small_disk / "old.png").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for output in ("disk", "disk/a.png", "disk/old.png"):
        result = cli(*DRAW, "-o", output)
        assert result.code == 1 and "may write to" in result.err, result
    assert [path.read_bytes() for path in small_disk.iterdir()] == [b"old"]


def test_too_little_address_space(cli):
    """From hardly enough to start up to enough to draw: out of memory and nothing else."""
    base = max(64 << 20, cli.model.stat().st_size)
    codes = []
    for limit in range(base // 2, 3 * base, base // 16):
        result = cli(
            *DRAW,
            "-o",
            "a.png",
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        assert result.code in (0, 4), (limit, result)
        if result.code == 4:
            assert "error: " in result.err and cli.files() == []
        else:
            assert cli.files() == ["a.png"]
            (cli.folder / "a.png").unlink()
        codes.append(result.code)
    assert codes[0] == 4 and codes[-1] == 0, codes


def test_processes_share_a_model_and_a_folder(cli):
    """At the same time, with the same default name."""
    processes = [start(cli, *DRAW) for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert len(cli.files()) == 4
    assert len({(cli.folder / name).read_bytes() for name in cli.files()}) == 1
