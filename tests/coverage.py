# SPDX-License-Identifier: Apache-2.0
"""Line coverage of the engine: runs the tests of an instrumented build and prints a table.

    cmake -S . -B build/coverage -DBONSAI_COVERAGE=ON -DBONSAI_BUILD_TESTS=ON \
        -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19
    cmake --build build/coverage
    python tests/coverage.py build/coverage [TEST_PATH_FOR_PYTEST ...]

Exit status 1 below the figures to reach: 95 % of the lines of the readers of foreign bytes, 90 % of
all of engine/src. Code for instruction sets that this processor lacks counts for nothing and is
named. --files lists every file, --missing the lines of the readers that no test reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = REPOSITORY / "engine" / "src"
READERS = [
    "core/describe.cpp",
    "core/gguf.cpp",
    "core/gguf_values.cpp",
    "core/identify.cpp",
    "core/mapped_file.cpp",
    "core/png_metadata.cpp",
    "core/utf8.cpp",
    "model/added_tokens.cpp",
    "model/bpe.cpp",
    "model/config.cpp",
    "model/tokenizer.cpp",
    "model/unicode.cpp",
    "model/weights.cpp",
]
GOALS = [95.0, 90.0]  # per cent: readers, engine
# Folder below backends/cpu and what it needs, as /proc/cpuinfo names it.
LEVELS = {
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512": "avx512_vnni",
    "amx": "amx_int8",
    "neon": "asimd",
}


def tool(name: str) -> str:
    for candidate in (f"{name}-19", name):
        if found := shutil.which(candidate):
            return found
    raise SystemExit(f"{name} is missing: apt-get install llvm-19")


def run_tests(build: Path, profiles: Path, paths: list[str]) -> None:
    shutil.rmtree(profiles, ignore_errors=True)
    profiles.mkdir()
    # One file for each program, into which all its runs are added.
    environment = os.environ | {
        "LLVM_PROFILE_FILE": str(profiles / "%2m.profraw"),
        "BONSAI_BUILD_DIR": str(build),
    }
    jobs = str(os.cpu_count() or 1)
    # The first two repeat small runs hundreds of times: much time, few lines. The third reads
    # object files, which counters make others.
    left = "test_allocations|test_concurrency|weak_symbols"
    commands = [["ctest", "--test-dir", str(build), "--output-on-failure", "-j", jobs, "-E", left]]
    if paths:
        commands.append([sys.executable, "-m", "pytest", "-q", *paths])
    for command in commands:
        if subprocess.run(command, cwd=REPOSITORY, env=environment).returncode:
            raise SystemExit(f"failed: {' '.join(command)}")


def programs(build: Path) -> list[str]:
    found = [
        *build.glob("tests/test_*"),
        *build.glob("bin/bonsai-cli"),
        *build.glob("tests/bonsai-probe"),
    ]
    return [str(path) for path in found if path.is_file() and os.access(path, os.X_OK)]


def measure(build: Path, profiles: Path) -> list[dict]:
    data = profiles / "all.profdata"
    merge = [tool("llvm-profdata"), "merge", "-sparse", "-o", str(data)]
    subprocess.run([*merge, *map(str, profiles.glob("*.profraw"))], check=True)
    first, *others = programs(build)
    command = [tool("llvm-cov"), "export", f"-instr-profile={data}", "-skip-expansions", first]
    command += [word for path in others for word in ("-object", path)]
    done = subprocess.run([*command, str(SOURCES)], check=True, capture_output=True)
    return json.loads(done.stdout)["data"][0]["files"]


def lacking() -> set[str]:
    """Levels whose code cannot run here."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return {folder for folder, flag in LEVELS.items() if flag not in flags}


def missing_lines(file: dict) -> list[int]:
    """First lines of the regions that were never entered."""
    regions = file["segments"]
    return sorted({line for line, _, count, counted, *_ in regions if counted and count == 0})


def share(lines: list[tuple[int, int]]) -> float:
    total = sum(count for count, _ in lines)
    return 100.0 * sum(covered for _, covered in lines) / max(total, 1)


def report(files: list[dict], every_file: bool, missing: bool, goals: list[float]) -> bool:
    absent = lacking()
    folders: dict[str, list[tuple[int, int]]] = defaultdict(list)
    readers = []
    left_out = set()
    for file in sorted(files, key=lambda f: f["filename"]):
        name = Path(file["filename"]).relative_to(SOURCES)
        level = name.parts[2] if name.parts[:2] == ("backends", "cpu") else ""
        if level in absent:
            left_out.add(level)
            continue
        lines = file["summary"]["lines"]
        pair = (lines["count"], lines["covered"])
        folders[str(name.parent)].append(pair)
        if every_file:
            print(f"{share([pair]):6.1f} %  {pair[0]:6d}  {name}")
        if str(name) in READERS:
            readers.append((str(name), pair))
            if missing:
                print(f"{name}: {' '.join(map(str, missing_lines(file)))}")
    print(f"{'lines':>14}  covered  engine/src")
    for folder, pairs in sorted(folders.items()):
        print(f"{sum(n for n, _ in pairs):14d}  {share(pairs):5.1f} %  {folder}")
    for name, pair in readers:
        print(f"{pair[0]:14d}  {share([pair]):5.1f} %  reader {name}")
    if left_out:
        print(f"not counted, this processor lacks them: {', '.join(sorted(left_out))}")
    ok = {name for name, _ in readers} == set(READERS)
    for what, goal, pairs in (
        ("readers", goals[0], [pair for _, pair in readers]),
        ("engine", goals[1], [pair for folder in folders.values() for pair in folder]),
    ):
        print(f"{what}: {share(pairs):.1f} % of the lines, {goal:.0f} % to reach")
        ok = ok and share(pairs) >= goal
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("paths", nargs="*", help="Python tests to run as well")
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--goals", nargs=2, type=float, default=GOALS, metavar="PERCENT")
    parser.add_argument("--no-run", action="store_true", help="report the runs before")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    profiles = build / "profiles"
    if not arguments.no_run:
        run_tests(build, profiles, arguments.paths)
    files = measure(build, profiles)
    ok = report(files, arguments.files, arguments.missing, arguments.goals)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
