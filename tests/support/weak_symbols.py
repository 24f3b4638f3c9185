# SPDX-License-Identifier: Apache-2.0
"""Fails when an object of a CPU level defines a weak symbol.

    weak_symbols.py NM OBJECT...

Such a function (an inline one of a shared header, a template of the standard library) exists in
many objects, and the linker keeps one for the whole program. If that is the copy compiled with a
level's flags, older processors run its instructions. Objects outside backends/cpu/<level>/ may
have weak symbols, and `generic` is such a folder too.
"""

import re
import subprocess
import sys

LEVEL = re.compile(r"[/\\]backends[/\\]cpu[/\\](?!generic[/\\])(\w+)[/\\][^/\\]+$")
# Of the compiler itself, the same in every object: references to the C++ runtime.
HARMLESS = re.compile(r"^DW\.ref\.__gxx_personality_v0$")


def weak_symbols(nm: str, path: str) -> list[str]:
    """Names that `path` defines weakly (W, V) or as unique globals (u)."""
    listing = subprocess.run(
        [nm, "--defined-only", path], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [
        row[2] for row in rows if len(row) == 3 and row[1] in "WVu" and not HARMLESS.match(row[2])
    ]


def main() -> int:
    nm, *paths = sys.argv[1:]
    checked: dict[str, int] = {}
    bad = 0
    for path in paths:
        level = LEVEL.search(path)
        if not level:
            continue
        checked[level[1]] = checked.get(level[1], 0) + 1
        for name in weak_symbols(nm, path):
            bad += 1
            print(f"{path}: weak symbol {name}")
    print("checked:", ", ".join(f"{level} ({n} objects)" for level, n in sorted(checked.items())))
    if not checked:
        print("no object of a CPU level among the arguments")
    return 1 if bad or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
