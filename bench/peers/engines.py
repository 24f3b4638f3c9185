# SPDX-License-Identifier: Apache-2.0
"""How each engine is called, what it says when a stage is done, and what one run took.

Linux only: processor time is read from /proc while a program runs.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

HELD_UP = 5.0  # seconds without a look that make the stages of a run worthless
STAGES = ("text encoder", "steps", "vae decode", "process")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Kind:
    """A program that is not ours."""

    arguments: tuple[str, ...]  # {prompt}, {width}, {height}, {steps}, {threads}, {out}
    # What ends a stage; time before it, since the last such text, belongs to the stage.
    ends: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]  # patterns of lines worth repeating: types of weights, instruction sets


KINDS = {
    "sd.cpp": Kind(
        ("-p", "{prompt}", "-W", "{width}", "-H", "{height}", "--steps", "{steps}",
         "--cfg-scale", "1", "-s", "42", "-t", "{threads}", "-o", "{out}", "-v"),
        (
            (r"loading tensors completed", "load"),
            (r"get_learned_condition completed", "text encoder"),
            (r"sampling completed", "steps"),
            (r"decode_first_stage completed", "vae decode"),
        ),
        (r"^.*weight type stat:.*$", r"^.*AVX2? = .*$"),
    ),
    "flux2.c": Kind(
        ("-p", "{prompt}", "-W", "{width}", "-H", "{height}", "-s", "{steps}", "-S", "42",
         "-o", "{out}", "-v"),
        (
            (r"Loading (?:VAE|Qwen3 encoder|FLUX\.2 transformer)\.\.\..*?done \(", "load"),
            (r"Encoding text\.\.\..*?done \(", "text encoder"),
            (r"Decoding image\.\.\.", "steps"),  # its beginning is the steps' end
            (r"done \(", "vae decode"),
        ),
        (r"^BLAS:.*$", r"^Generic:.*$"),
    ),
}  # fmt: skip


@dataclass
class Run:
    """Seconds by stage, of the clock and of the processor (user and system); memory."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    peak: int = 0  # bytes resident, highest of the process
    facts: list[str] = field(default_factory=list)
    held: float = 0.0  # longest time that this watcher could not look, seconds

    def add(self, stage: str, wall: float, cpu: float) -> None:
        self.wall[stage] = self.wall.get(stage, 0.0) + wall
        self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu


class EngineError(RuntimeError):
    """A program failed, or did not say what it was expected to say."""


def version_of(program: str) -> str:
    """The first line that the program prints about itself."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{program}: {error}") from error
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else "version unknown"


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def finish(process: subprocess.Popen, began: float, run: Run) -> None:
    """Waits for the process and enters what the whole of it took."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    run.add("process", time.monotonic() - began, usage.ru_utime + usage.ru_stime)
    run.peak = usage.ru_maxrss * 1024


def pieces(stream, run: Run):
    """What the program says, as soon as it does; notes when this process was kept from looking."""
    looked = time.monotonic()
    while True:
        ready = select.select([stream], [], [], 1.0)[0]
        now = time.monotonic()
        run.held, looked = max(run.held, now - looked), now
        if ready:
            chunk = stream.read(4096)
            if not chunk:
                return
            yield chunk


def next_end(kind: Kind, text: str, start: int) -> tuple[int, int, str] | None:
    """Where the first text from `start` on that ends a stage begins and ends; the stage."""
    found = [
        (match.start(), match.end(), stage)
        for pattern, stage in kind.ends
        if (match := re.compile(pattern, re.S).search(text, start))
    ]
    return min(found, default=None)


def run_peer(kind: Kind, command: list[str], log: Path, threads: int) -> Run:
    """Runs the program once, cutting its time where its output says that a stage is done."""
    run, began = Run(), time.monotonic()
    env = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, env=env
    )
    text, seen, at, cpu = "", 0, began, 0.0
    for chunk in pieces(process.stdout, run):
        text += chunk.decode("utf-8", "replace")
        while end := next_end(kind, text, seen):
            now, used = time.monotonic(), cpu_seconds(process.pid)
            run.add(end[2], now - at, used - cpu)
            at, cpu, seen = now, used, end[1]
    finish(process, began, run)
    log.write_text(text, encoding="utf-8")
    last = text.strip()[-1000:]
    if process.returncode:
        raise EngineError(f"{command[0]} ended with {process.returncode}; its last words:\n{last}")
    for pattern, stage in kind.ends:
        if stage not in run.wall and stage in STAGES:
            raise EngineError(
                f"{command[0]} never said {pattern!r}, the end of {stage}; its last words:\n{last}"
            )
    for pattern in kind.facts:
        run.facts += [line.strip() for line in re.findall(pattern, text, re.M)]
    return run


def run_bonsai(bench: str, model: str, size: str, steps: int, threads: int) -> tuple[Run, list]:
    """Runs bonsai-bench, which draws once from a cold start; also its rows, one for each op."""
    run, began = Run(), time.monotonic()
    command = [bench, "-m", model, "--size", size, "--steps", str(steps), "-r", "1", "--ops"]
    process = subprocess.Popen(
        [*command, "--threads", str(threads), "-o", "json"], stdout=subprocess.PIPE, text=True
    )
    text = process.stdout.read()
    finish(process, began, run)
    if process.returncode:
        raise EngineError(f"{' '.join(command)} failed ({process.returncode})")
    rows = json.loads(text)
    for row in rows:
        if row["what"] in ("open", "text encoder", "step", "vae decode"):
            times = steps if row["what"] == "step" else 1
            stage = {"step": "steps", "open": "load"}.get(row["what"], row["what"])
            run.add(stage, row["seconds"] * times, row["cpu_seconds"] * times)
    run.facts = [f"{rows[0]['model']}, level {rows[0]['level']}, {rows[0]['precision']}"]
    return run, rows
