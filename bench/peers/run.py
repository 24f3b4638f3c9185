# SPDX-License-Identifier: Apache-2.0
"""Bonsai beside other engines on one machine, alternating in one run.

    python bench/peers/run.py --bonsai build/bench/bonsai-bench compact.gguf --size 256x256 \\
        --peer "sd.cpp 97d2990" "sd-cli --diffusion-model dit.gguf --llm llm.gguf --vae vae.gguf" \\
        --peer "flux2.c b9cbbea" "flux -d full" --sgemm --json all.json --plot plot.png

Every engine draws one picture a round in a process of its own, one after the other, so that a busy
minute of the machine hits all of them; --sgemm adds numpy's product at the shapes of our packed
ones. The peers are programs that you name, with the models that they need: README.md beside this
file says how to come by both. The first word of a peer's name is its kind: sd.cpp or flux2.c.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import report
from engines import KINDS, EngineError, Run, run_bonsai, run_peer, version_of

PROMPT = "a red apple on a blue background"
SGEMM = Path(__file__).with_name("sgemm.py")
OURS = "bonsai"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a = parser.add_argument
    a("--bonsai", nargs=2, metavar=("BENCH", "MODEL"), required=True, help="our bonsai-bench")
    a("--peer", nargs=2, action="append", default=[], metavar=("NAME", "COMMAND"))
    a("--size", default="256x256", help="WxH[,WxH]; default 256x256")
    a("--steps", type=int, default=1)
    a("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a("--rounds", type=int, default=1)
    a("--limit", type=float, default=math.inf, metavar="CPU-S", help="end a peer that used so many")
    a("--sgemm", action="store_true", help="numpy's sgemm at the shapes of our packed products")
    a("--shapes", type=int, default=3, help="of these products, the costliest so many")
    a("--json", type=Path, help="write everything measured there")
    a(
        "--plot",
        type=Path,
        help="write a picture of time and memory against pixels (needs matplotlib)",
    )
    a("--logs", type=Path, help="folder for what the peers say and draw; default: a temporary one")
    return parser


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} processors seen"


def load() -> str:
    return f"load of the last minute {os.getloadavg()[0]:.1f}"


def packed_products(rows: list[dict]) -> list[dict]:
    """Our linears with packed weights of a step, with their shape MxKxN, the costliest first."""
    found = []
    for row in rows:
        shape = re.search(r"^step: linear.* (\d+x\d+x\d+)$", row["what"])
        if shape and row["giga_ops"] > 0 and re.search(r"Q\d_\d", row["what"]):
            found.append(row | {"shape": shape[1], "name": row["what"].split(": ", 1)[1]})
    return sorted(found, key=lambda row: -row["cpu_seconds"])


def compare_products(rows: list[dict], options: argparse.Namespace, out: dict) -> str:
    """One round of sgemm at the shapes of our products; returns the library's name."""
    found = packed_products(rows)
    # Those of the first round in all rounds.
    chosen = [row for row in found if row["name"] in out] if out else found[: options.shapes]
    shapes = [row["shape"] for row in chosen]
    command = [sys.executable, str(SGEMM), str(options.threads), *shapes]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"sgemm: {done.stderr.strip()}")
    sgemm = json.loads(done.stdout)
    for row in chosen:
        m, k, n = map(int, row["shape"].split("x"))
        wall, cpu = sgemm["seconds"][row["shape"]]
        out.setdefault(row["name"], []).append(
            {
                "cpu_rate": row["giga_ops"] / row["cpu_seconds"],
                "wall_rate": row["giga_ops"] / row["seconds"],
                "sgemm_cpu_rate": 2e-9 * m * k * n / cpu,
                "sgemm_wall_rate": 2e-9 * m * k * n / wall,
            }
        )
    return sgemm["library"]


def peer_command(name: str, command: list[str], size: str, options, logs: Path) -> list[str]:
    width, height = size.split("x")
    values = {
        "prompt": PROMPT, "width": width, "height": height, "steps": options.steps,
        "threads": options.threads, "out": logs / f"{name.replace(' ', '-')}-{size}.png",
    }  # fmt: skip
    return command + [word.format(**values) for word in KINDS[name.split()[0]].arguments]


def measure(size: str, peers: list, options, logs: Path, products: dict) -> tuple[dict, str]:
    """All rounds of one size: engine -> runs, and the library of sgemm."""
    runs: dict[str, list[Run]] = {OURS: []}
    library = ""
    for number in range(options.rounds):
        run, rows = run_bonsai(*options.bonsai, size, options.steps, options.threads)
        runs[OURS].append(run)
        for name, command in peers:
            full = peer_command(name, command, size, options, logs)
            print(f"round {number + 1}, {size}, {name}: {shlex.join(full)}", file=sys.stderr)
            log = logs / f"{name.replace(' ', '-')}-{size}-{number + 1}.log"
            run = run_peer(KINDS[name.split()[0]], full, log, options.threads, options.limit)
            runs.setdefault(name, []).append(run)
        if options.sgemm:
            library = compare_products(rows, options, products)
    return runs, library


def compare(options: argparse.Namespace, peers: list, logs: Path) -> None:
    print(f"{machine()}; {options.threads} threads, {options.steps} steps; {load()}\n")
    versions = {name: version_of(command[0]) for name, command in peers}
    results, shapes, library = {}, {}, ""
    for size in options.size.split(","):
        products: dict[str, list[dict]] = {}
        results[size], library = measure(size, peers, options, logs, products)
        if size == options.size.split(",")[0]:
            for name, list_ in results[size].items():
                print(f"- {name}: {versions.get(name, options.bonsai[1])}")
                print("".join(f"  - {fact}\n" for fact in list_[0].facts), end="")
        print(f"\n## {size}, medians of {options.rounds}\n")
        print(report.stage_table(results[size], options.steps), flush=True)
        if products:
            print(f"\n{library}\n\n{report.product_table(products)}", flush=True)
            shapes[size] = products
    print(f"\nafterwards: {load()}")
    if options.json:
        kept = {
            "machine": machine(), "threads": options.threads, "steps": options.steps,
            "commands": {OURS: shlex.join(options.bonsai)} | {n: shlex.join(c) for n, c in peers},
            "versions": versions, "sgemm": library, "products": shapes,
            "runs": {
                size: {name: [vars(run) for run in list_] for name, list_ in engines.items()}
                for size, engines in results.items()
            },
        }  # fmt: skip
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        report.plot(results, options.plot)


def main() -> int:
    parser = make_parser()
    options = parser.parse_args()
    for name, _ in options.peer:
        if not name.split() or name.split()[0] not in KINDS:
            parser.error(f"--peer {name}: its first word must be one of {', '.join(KINDS)}")
    if min(options.threads, options.steps, options.rounds, options.shapes) < 1:
        parser.error("--threads, --steps, --rounds and --shapes must be at least 1")
    if not all(re.fullmatch(r"\d+x\d+", size) for size in options.size.split(",")):
        parser.error(f"--size {options.size}: expected e.g. 256x256,512x512")
    peers = [(name, shlex.split(command)) for name, command in options.peer]
    try:
        with tempfile.TemporaryDirectory(prefix="bonsai-peers-") as scratch:
            logs = options.logs or Path(scratch)
            logs.mkdir(parents=True, exist_ok=True)
            compare(options, peers, logs)
    except EngineError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
