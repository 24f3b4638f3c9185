# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal and elsewhere, and stopping by signals."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

pty = pytest.importorskip("pty", reason="no pseudo terminals on this system")
pytestmark = pytest.mark.posix

LONG = ["-p", "x", "-s", "1", "--size", "256x256", "--steps", "500"]


def on_terminal(cli, *arguments: str, **env: str) -> tuple[int, str]:
    """Runs with standard error on a terminal of 60 columns; gives exit code and what it showed."""
    leader, follower = pty.openpty()
    environment = cli.environment(COLUMNS="60", **env)
    process = subprocess.Popen(
        [cli.program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        cwd=cli.folder,
        env=environment,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux reports the end of the other side as an error
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    return process.wait(60), shown.decode("utf-8", "replace")


def test_terminal_rewrites_one_line(cli):
    options = ["--size", "128x128", "--steps", "3", "-s", "1", "-o", "a.png"]
    code, shown = on_terminal(cli, "-p", "x", *options)
    assert code == 0, shown
    shown = shown.replace("\r\n", "\n")
    rewritten = [part for part in shown.split("\r") if "denoise: step" in part]
    assert rewritten and all(len(part) < 60 and "\n" not in part for part in rewritten), shown
    # What stays: the seed and the summary.
    assert shown.count("\n") == 2


def test_colours_only_where_wanted(cli):
    for env, colour in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        code, shown = on_terminal(cli, "--steps", "0", "-p", "x", **env)
        assert code == 2 and ("\x1b[" in shown) == colour, (env, shown)


def test_plain_lines_elsewhere(cli):
    result = cli.draw("-p", "x", "-s", "1", "--size", "64x64", "--steps", "3", "-o", "a.png")
    assert "\r" not in result.err and "\x1b" not in result.err
    for n in (1, 2, 3):
        assert result.err.count(f"denoise: step {n}/3") == 1
    assert "/step" in result.err and "text encoder" in result.err and "vae" in result.err


def test_picture_does_not_go_to_a_terminal(cli):
    leader, follower = pty.openpty()
    process = subprocess.run(
        [cli.program, "-p", "x", "-o", "-"],
        stdout=follower,
        stderr=subprocess.PIPE,
        env=cli.environment(),
        timeout=60,
    )
    os.close(follower)
    os.close(leader)
    assert process.returncode == 2 and b"terminal" in process.stderr


def start_drawing(cli, *arguments: str) -> subprocess.Popen:
    """A drawing that would take minutes, past its first step."""
    process = subprocess.Popen(
        [cli.program, *LONG, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cli.folder,
        env=cli.environment(),
        text=True,
    )
    for line in process.stderr:
        if "step 1/500" in line:
            return process
    pytest.fail(f"did not start drawing, exit code {process.wait()}")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_and_leaves_nothing(cli, number, code):
    process = start_drawing(cli)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)  # the whole drawing takes minutes
    assert process.returncode == code and out == ""
    assert "error: " in err.splitlines()[-1]
    assert cli.files() == []


def test_second_interrupt_ends_at_once(cli):
    process = start_drawing(cli)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert cli.files() == []


def test_ignored_interrupts_stay_ignored(cli):
    """As in the background of a shell script."""
    process = subprocess.Popen(
        [cli.program, "-p", "x", "--size", "128x128", "--steps", "20", "-s", "1", "-o", "a.png"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=cli.folder,
        env=cli.environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == 0 and cli.files() == ["a.png"]
