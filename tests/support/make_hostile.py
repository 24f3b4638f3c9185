# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/hostile: small files that lie, and expected.tsv with what each must give.

    python tests/support/make_hostile.py           # after a change here
    python tests/support/make_hostile.py --check   # are the committed files these?

A line of expected.tsv is: file, who reads it, words of the error.
    gguf      the GGUF reader: bonsai-cli info, and the converter's reader
    model     well-formed GGUF, refused when it is opened to draw
    verify    well-formed GGUF, refused by bonsai-cli verify
    png       bonsai-cli --from
    a path    the converter, with the file in that place of an otherwise good checkpoint
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import (  # noqa: E402
    hostile_convert,
    hostile_foreign,
    hostile_gguf,
    hostile_png,
    hostile_torch,
)

FOLDER = Path(__file__).resolve().parents[1] / "data" / "hostile"


def all_cases() -> dict[str, tuple[str, str, bytes]]:
    """File -> (reader, words, bytes)."""
    cases: dict[str, tuple[str, str, bytes]] = {}
    modules = (hostile_gguf, hostile_png, hostile_convert, hostile_torch, hostile_foreign)
    for module in modules:
        for file, reader, words, data in module.cases():
            assert file not in cases, file
            cases[file] = (reader, words, data)
    return cases


def table(cases: dict[str, tuple[str, str, bytes]]) -> str:
    lines = [f"{file}\t{reader}\t{words}" for file, (reader, words, _) in sorted(cases.items())]
    return "\n".join(["file\treader\twords", *lines]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make tests/data/hostile.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    cases = all_cases()
    wanted = {file: data for file, (_, _, data) in cases.items()}
    wanted["expected.tsv"] = table(cases).encode()
    there = {p.relative_to(FOLDER).as_posix(): p for p in FOLDER.rglob("*") if p.is_file()}
    wrong = [f for f in wanted if f not in there or there[f].read_bytes() != wanted[f]]
    wrong += [f for f in there if f not in wanted]
    if check:
        print("\n".join(f"differs: {f}" for f in sorted(wrong)) or "the files are as made here")
        return 1 if wrong else 0
    for file in there.keys() - wanted.keys():
        there[file].unlink()
    for file, data in wanted.items():
        (FOLDER / file).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / file).write_bytes(data)
    print(f"{FOLDER}: {len(cases)} files, {sum(map(len, wanted.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
