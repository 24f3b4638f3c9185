# SPDX-License-Identifier: Apache-2.0
"""How each engine is called, what it says when a stage is done, and what one run took.

Linux only: processor time is read from /proc while a program runs.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

HELD_UP = 5.0  # seconds without a look that make the stages of a run worthless
LOOK_EVERY = 0.2  # seconds
PROMPT = 1.0  # a line seen within so many seconds ended its stage when it was seen
STAGES = ("text encoder", "steps", "vae decode", "process")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Kind:
    """A program that is not ours."""

    arguments: tuple[str, ...]  # {prompt}, {width}, {height}, {steps}, {threads}, {out}
    # What ends a stage; time before it, since the last such text, belongs to the stage. The group
    # holds the seconds that the stage took, if the program says them.
    ends: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]  # patterns of lines worth repeating: types of weights, instruction sets
    loads_counted: bool = False  # these seconds have those of the loads before the stage in them


KINDS = {
    "sd.cpp": Kind(
        ("-p", "{prompt}", "-W", "{width}", "-H", "{height}", "--steps", "{steps}",
         "--cfg-scale", "1", "-s", "42", "-t", "{threads}", "-o", "{out}", "-v"),
        (
            (r"loading tensors completed(?:, taking ([\d.]+)s)?[^\n]*\n", "load"),
            (r"get_learned_condition completed(?:, taking ([\d.]+)s)?[^\n]*\n", "text encoder"),
            (r"sampling completed(?:, taking ([\d.]+)s)?[^\n]*\n", "steps"),
            (r"decode_first_stage completed(?:, taking ([\d.]+)s)?[^\n]*\n", "vae decode"),
        ),
        (r"^.*weight type stat:.*$", r"^.*AVX2? = .*$"),
        loads_counted=True,
    ),
    "flux2.c": Kind(
        ("-p", "{prompt}", "-W", "{width}", "-H", "{height}", "-s", "{steps}", "-S", "42",
         "-o", "{out}", "-v"),
        (
            (
                r"Loading (?:VAE|Qwen3 encoder|FLUX\.2 transformer)\.\.\..*?done \(([\d.]+)s\)",
                "load",
            ),
            (r"Encoding text\.\.\..*?done \(([\d.]+)s\)", "text encoder"),
            (r"Total denoising: [^\n]*\(([\d.]+) s\)", "steps"),
            (r"done \(([\d.]+)s\)", "vae decode"),
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
    unfinished: str = ""  # the stage in which the program was ended for want of time
    held: float = 0.0  # longest time in which a stage ended and nobody looked or said when, seconds

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


@dataclass(frozen=True)
class Look:
    """A moment at which a program was looked at."""

    time: float
    cpu: float  # processor seconds that it had used

    def until(self, later: Look, moment: float) -> Look:
        """What had been seen at a moment from here to `later`, if the program worked evenly."""
        moment = min(max(moment, self.time), later.time)
        share = (moment - self.time) / max(later.time - self.time, 1e-9)
        return Look(moment, self.cpu + share * (later.cpu - self.cpu))


@dataclass(frozen=True)
class End:
    """A text that ends a stage."""

    stop: int  # where the text ends
    stage: str
    said: float | None  # seconds of the stage by the program's own clock


def pieces(process: subprocess.Popen, began: float, limit: float):
    """(what the program says, the look before, the look when it was read), as soon as it does.

    A program that used `limit` processor seconds is ended.
    """
    before = Look(began, 0.0)
    while True:
        ready = select.select([process.stdout], [], [], LOOK_EVERY)[0]
        now = Look(time.monotonic(), cpu_seconds(process.pid))
        if now.cpu > limit:
            process.kill()
            return
        if ready:
            chunk = process.stdout.read(4096)
            if not chunk:
                return
            yield chunk.decode("utf-8", "replace"), before, now
        before = now


def next_end(kind: Kind, text: str, start: int) -> End | None:
    """The first text from `start` on that ends a stage."""
    found = [
        (match.start(), match.end(), stage, match)
        for pattern, stage in kind.ends
        if (match := re.compile(pattern, re.S).search(text, start))
    ]
    if not found:
        return None
    _, stop, stage, match = min(found, key=lambda one: one[:2])
    return End(stop, stage, float(match[1]) if match[1] else None)


class Stages:
    """Cuts a run where the program says that a stage is done.

    Whoever watches can be held up, so that a line is read long after it was written. Then the
    program's own seconds say when the stage ended, and the processor time of that moment is taken
    from the looks before and after it.
    """

    def __init__(self, kind: Kind, began: float, run: Run) -> None:
        self.kind, self.run, self.began, self.last = kind, run, began, Look(began, 0.0)
        self.loads = 0.0  # said since the last stage that is none
        self.text, self.seen = "", 0

    def hear(self, piece: str, before: Look, now: Look) -> None:
        self.text += piece
        while end := next_end(self.kind, self.text, self.seen):
            self.seen = end.stop
            self._cut(end, before, now)

    def _cut(self, end: End, before: Look, now: Look) -> None:
        said, at = end.said, now
        if end.stage == "load":
            self.loads += said or 0.0
        else:
            if said is not None and self.kind.loads_counted:
                said = max(said - self.loads, 0.0)
            self.loads = 0.0
        if now.time - before.time > PROMPT:
            if said is None:
                self.run.held = max(self.run.held, now.time - before.time)
            else:
                at = before.until(now, self.last.time + said)
        self.run.add(end.stage, at.time - self.last.time, at.cpu - self.last.cpu)
        self.last = at

    def close(self) -> None:
        """What the whole took beyond the last stage belongs to the one that never ended."""
        missing = [s for s in STAGES if s not in self.run.wall]
        self.run.unfinished = missing[0]
        wall, cpu = self.run.wall["process"], self.run.cpu["process"]
        self.run.add(missing[0], wall - (self.last.time - self.began), cpu - self.last.cpu)


def run_peer(
    kind: Kind, command: list[str], log: Path, threads: int, limit: float = math.inf
) -> Run:
    """Runs the program once, cutting its time where its output says that a stage is done.

    One that used `limit` processor seconds is ended, in a stage that is noted.
    """
    run, began = Run(), time.monotonic()
    env = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, env=env
    )
    stages = Stages(kind, began, run)
    for piece, before, now in pieces(process, began, limit):
        stages.hear(piece, before, now)
    finish(process, began, run)
    text = stages.text
    log.write_text(text, encoding="utf-8")
    last = text.strip()[-1000:]
    for pattern in kind.facts:
        run.facts += [line.strip() for line in re.findall(pattern, text, re.M)]
    if process.returncode and run.cpu["process"] > limit and "vae decode" not in run.wall:
        stages.close()
        return run
    if process.returncode:
        raise EngineError(f"{command[0]} ended with {process.returncode}; its last words:\n{last}")
    for pattern, stage in kind.ends:
        if stage not in run.wall and stage in STAGES:
            raise EngineError(
                f"{command[0]} never said {pattern!r}, the end of {stage}; its last words:\n{last}"
            )
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
