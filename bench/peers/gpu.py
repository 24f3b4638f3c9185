# SPDX-License-Identifier: Apache-2.0
"""Ours beside PyTorch on one GPU in one run: every stage and the whole picture, time and memory.

    python bench/peers/gpu.py --bonsai build/bench/bonsai-bench-warm compact.gguf \\
        --out results [--ways ours,eager,compiled,gemlite] [--budget 420]

Peers are diffusers and transformers in bfloat16, eager, compiled, and with gemlite's 2-bit kernels
in the transformer (torch_gpu.py runs them, with random weights). All get ready first, side by side,
as compiling and tuning take minutes; then they take turns, one at a time, and medians count.
RESULTS/gpu.md, .json and .png (with matplotlib) are written again after each figure, so that a run
that is cut short leaves what it has. Figures from the time of getting ready, when other engines
compile, stand in brackets until a quiet one replaces them.

Compiled and gemlite are made for each size anew, so they run at --tuned sizes only, batch 1: these
sizes have --rounds rounds, all others one. --everywhere names ways that run at all sizes as eager
does: gemlite, once its choice of tiles is in a file (--worker "--tiles FILE", torch_gpu.py). What
is not ready when --budget seconds are two thirds over is left out.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import gpu_report
from gpu_report import Figure, Results

WORKER = Path(__file__).with_name("torch_gpu.py")
PEERS = ("eager", "compiled", "gemlite")
STAGES = ("encoder", "step", "vae", "picture")
STEPS, MANY_STEPS = 4, 20
READY_SHARE = 2 / 3  # of the budget, after which nothing is waited for
MANY_PIXELS = 1 << 20  # at most, for MANY_STEPS
SECONDS = 0.7  # of runs for one figure
GRACE = 60.0  # seconds over the budget in which what has begun may end


@dataclass(frozen=True)
class Case:
    width: int
    height: int
    batch: int = 1

    @property
    def label(self) -> str:
        return f"{self.width}x{self.height}" + (f", {self.batch} pictures" * (self.batch > 1))


def cases_of(sizes: str, batches: str, batch_size: str) -> list[Case]:
    """All sizes one by one, then one size in batches."""

    def parsed(size: str) -> tuple[int, int]:
        if not re.fullmatch(r"\d+x\d+", size):
            raise ValueError(f"{size}: expected e.g. 512x512")
        width, height = map(int, size.split("x"))
        return width, height

    cases = [Case(*parsed(size)) for size in sizes.split(",")]
    cases += [Case(*parsed(batch_size), int(n)) for n in batches.split(",") if n]
    return list(dict.fromkeys(cases))


class Peer:
    """A process of torch_gpu.py for some of the cases."""

    def __init__(self, way: str, cases: list[Case], options: argparse.Namespace) -> None:
        self.way, self.cases, self.options = way, cases, options
        self.ready: dict[Case, list[str]] = {case: [] for case in cases}
        self.why = ""  # nothing more comes from it
        self.failed: list[str] = []
        self.facts: dict = {}
        command = [options.python, str(WORKER), way, *options.worker]
        self.log = open(options.out / f"{way}-{cases[0].width}.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            if line.startswith("{"):  # compilers may print, too
                self.answers.put(line)
        self.answers.put("")

    def _next(self, deadline: float) -> dict:
        try:
            line = self.answers.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            self.stop("not ready in time")
            return {}
        if not line:
            self.stop(f"ended by itself, see {self.log.name}")
            return {}
        return json.loads(line)

    def ask(self, case: Case, stage: str, seconds: float, deadline: float) -> Figure | None:
        if self.why:
            return None
        request = {"stage": stage, "width": case.width, "height": case.height}
        request |= {"batch": case.batch, "seconds": seconds}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stop(f"ended by itself, see {self.log.name}")
            return None
        found = self._next(deadline)
        if "ms" not in found:
            self.failed.append(f"{stage} {case.label}: {found.get('error', self.why)}")
            return None
        return Figure(found["ms"] / case.batch, found["peak"])

    def prepare(self, results: Results, deadline: float) -> None:
        """Compiles and tunes case by case; each figure is kept as one that may be disturbed. What
        runs at all sizes needs no more than to have begun."""
        self.facts = self._next(deadline)
        tuned = tuned_cases(self.options)
        for case in self.cases:
            if case not in tuned:
                self.ready[case] = list(STAGES)
                continue
            for stage in STAGES:
                if figure := self.ask(case, stage, 0.0, deadline):
                    self.ready[case].append(stage)
                    results.add(self.way, stage, case, figure, quiet=False)

    def measure(self, case: Case, results: Results, deadline: float) -> None:
        for stage in self.ready.get(case, []):
            if figure := self.ask(case, stage, SECONDS, deadline):
                results.add(self.way, stage, case, figure, quiet=True)
            elif self.failed:
                results.note(f"{self.way}, {self.failed[-1]}")

    def stop(self, why: str) -> None:
        self.why = self.why or why
        self.process.kill()
        self.process.wait()
        self.log.close()


WARM = re.compile(
    r"text encoder ([\d.]+) ms, step ([\d.]+) ms, vae ([\d.]+) ms, image ([\d.]+) ms, "
    r"peak (\d+) MB(?:, wall ([\d.]+) ms)?"
)


def parse_warm(text: str) -> dict[str, Figure]:
    """The line of bonsai-bench-warm: stage -> figure; the peak is that of the whole."""
    found = WARM.search(text)
    if not found:
        raise ValueError(f"bonsai-bench-warm said: {text[-300:]!r}")
    *times, image, peak, wall = found.groups()
    times.append(wall or image)  # by the clock, where the program says it
    return {stage: Figure(float(ms), int(peak) * 10**6) for stage, ms in zip(STAGES, times)}  # noqa: B905


class Ours:
    """bonsai-bench-warm, a process a figure."""

    def __init__(self, cases: list[Case], options: argparse.Namespace, folder: Path) -> None:
        self.cases, self.options = cases, options
        self.prompts = folder / "prompts.txt"

    def _run(self, case: Case, steps: int, deadline: float) -> dict[str, Figure]:
        count = 9 if case.width * case.height * case.batch * steps <= STEPS << 20 else 4  # pictures
        words = [f"picture {i} of a red apple on a blue background" for i in range(count)]
        self.prompts.write_text("\n".join(words) + "\n")
        command = [*self.options.bonsai, self.options.device, self.options.precision]
        command += [f"{case.width}x{case.height}", str(steps), str(self.prompts)]
        command += ["--batch", str(case.batch)] if case.batch > 1 else []
        left = max(deadline - time.monotonic(), 1.0)
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        if done.returncode:
            raise ValueError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
        return parse_warm(done.stdout)

    def measure(self, case: Case, results: Results, deadline: float) -> None:
        try:
            for stage, figure in self._run(case, STEPS, deadline).items():
                results.add("ours", stage, case, figure, quiet=True)
            if case.batch == 1 and case.width * case.height <= MANY_PIXELS:
                figure = self._run(case, MANY_STEPS, deadline)["step"]
                results.add("ours", f"step of {MANY_STEPS}", case, figure, quiet=True)
        except (ValueError, OSError, subprocess.TimeoutExpired) as error:
            results.note(f"ours, {case.label}: {error}")


def tuned_cases(options: argparse.Namespace) -> list[Case]:
    return cases_of(options.tuned, "", options.batch_size)


def start_peers(options: argparse.Namespace, cases: list[Case]) -> list[Peer]:
    """Some do all cases in one process; the others need minutes a size, so one process each."""
    peers = []
    for way in options.ways:
        if way == "eager" or way in options.everywhere:
            peers.append(Peer(way, cases, options))
        elif way in PEERS:
            peers += [Peer(way, [case], options) for case in tuned_cases(options) if case in cases]
    return peers


def prepare(peers: list[Peer], results: Results, deadline: float) -> None:
    threads = [threading.Thread(target=peer.prepare, args=(results, deadline)) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for peer in peers:
        if peer.facts:
            results.note(f"{peer.way}: torch {peer.facts['torch']}, {peer.facts['device']}")
        for failed in peer.failed:
            results.note(f"{peer.way}, {failed}")


def take_turns(options, cases: list[Case], engines: list, results: Results, until: float) -> None:
    """--rounds of the cases that all engines have, then one of the others; all come first once."""
    tuned = [case for case in cases if case in tuned_cases(options)]
    others = [case for case in cases if case not in tuned]
    for number, chosen in enumerate([tuned] * options.rounds + [others]):
        for case in chosen:
            turns = [engine for engine in engines if case in engine.cases]
            at = number % max(len(turns), 1)
            for engine in turns[at:] + turns[:at]:
                if time.monotonic() < until:
                    engine.measure(case, results, until + GRACE)


def run(options: argparse.Namespace, cases: list[Case], results: Results, folder: Path) -> None:
    began = time.monotonic()
    until = began + options.budget
    ours = [Ours(cases, options, folder)] if "ours" in options.ways else []
    for engine in ours:  # something to show, before minutes of compiling
        engine.measure(cases[0], results, until)
    peers = start_peers(options, cases)
    try:
        prepare(peers, results, began + READY_SHARE * options.budget)
        results.note(f"ready after {time.monotonic() - began:.0f} s")
        take_turns(options, cases, [*ours, *peers], results, until)
    finally:
        for peer in peers:
            peer.stop("done")
    results.note(f"{time.monotonic() - began:.0f} s in all")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a = parser.add_argument
    a("--bonsai", nargs=2, metavar=("WARM", "MODEL"), help="bonsai-bench-warm and a model file")
    a("--out", type=Path, required=True, help="folder of the results")
    a("--ways", default="ours,eager,compiled,gemlite", help="which to run; default all")
    a("--sizes", default="512x512,1024x1024,256x256,2048x2048", help="the first ones first")
    a("--batches", default="2,4,8", help="pictures at a time, at --batch-size; '' for none")
    a("--batch-size", default="512x512")
    a("--tuned", default="512x512,1024x1024", help="sizes of compiled and gemlite")
    a("--everywhere", default="", help="ways beside eager that run at all sizes and batches")
    a("--rounds", type=int, default=2, help="of the --tuned sizes")
    a("--budget", type=float, default=420, help="seconds for everything")
    a("--device", default="cuda:0", help="of ours")
    a("--precision", choices=("fast", "exact"), default="fast", help="of ours")
    a("--python", default=sys.executable, help="the one that has torch")
    a("--worker", type=shlex.split, default=[], help='of torch_gpu.py: "--device cpu --small"')
    return parser


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    options.ways = options.ways.split(",")
    options.everywhere = [way for way in options.everywhere.split(",") if way]
    if unknown := (set(options.ways) - {"ours", *PEERS}) | (set(options.everywhere) - set(PEERS)):
        parser.error(f"unknown ways: {', '.join(sorted(unknown))}")
    if "ours" in options.ways and not options.bonsai:
        parser.error("--bonsai is missing (or leave ours out of --ways)")
    try:
        cases = cases_of(options.sizes, options.batches, options.batch_size)
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out, options.ways)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the peers end, too
    with tempfile.TemporaryDirectory(prefix="bonsai-gpu-") as folder:
        run(options, cases, results, Path(folder))
    results.write(with_plot=True)
    print(gpu_report.markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
