#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes engine/src/model/unicode_tables.inc from the behaviour of the `tokenizers` library.

The engine has to split and normalise text as `tokenizers` does, and that library is not of one
Unicode version: its regex engine (Oniguruma) knows Unicode 16.0, its NFC (a Rust crate) Unicode
9.0. So no Unicode file and no version of Python's unicodedata gives the right answer for every
code point. This script asks the library itself, about all 1,112,064 code points, and cross-checks
what it can against unicodedata. Run it again when the library changes:

    python engine/tools/make_unicode_tables.py engine/src/model/unicode_tables.inc
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)  # composed by arithmetic in unicode.cpp, not by table
LETTER, NUMBER, SPACE = 1, 2, 3  # CharClass in unicode.h
BATCH = 4096

nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


def class_members(pattern: str) -> set[int]:
    """The code points that the library's regex engine matches with a one-character pattern."""
    splitter = pre_tokenizers.Split(Regex(pattern), "removed")
    members: set[int] = set()
    for start in range(0, len(CODE_POINTS), BATCH):
        text = "".join(map(chr, CODE_POINTS[start : start + BATCH]))
        kept = "".join(piece for piece, _ in splitter.pre_tokenize_str(text))
        members |= {ord(c) for c in set(text) - set(kept)}
    return members


def decompositions() -> dict[int, str]:
    """Full canonical decomposition of each code point that has one, Hangul syllables left out."""
    table = {}
    for cp in CODE_POINTS:
        text = nfd(chr(cp))
        if text == chr(cp):
            if cp in HANGUL:
                sys.exit(f"the library no longer decomposes Hangul U+{cp:04X}")
        elif cp in HANGUL:
            if text != unicodedata.normalize("NFD", chr(cp)):
                sys.exit(f"Hangul U+{cp:04X} decomposes unexpectedly")
        else:
            table[cp] = text
    return table


def compositions(decomposed: dict[int, str]) -> dict[tuple[int, int], int]:
    """(first, second) -> composite, for the composites that NFC does form."""
    pairs = {}
    for cp, text in decomposed.items():
        if nfc(chr(cp)) != chr(cp):
            continue  # singleton or composition exclusion
        first = nfc(text[:-1])
        if len(first) != 1:
            sys.exit(
                f"U+{cp:04X}: its decomposition without the last character is not one character"
            )
        pairs[ord(first), ord(text[-1])] = cp
    return pairs


def combining_classes() -> dict[int, int]:
    """Canonical combining class of each non-starter, found by what NFD reorders it with.

    One mark of each class serves as a ruler: after the mark m, x moves in front of m if and only
    if 0 < ccc(x) < ccc(m). A class once given never changes, so unicodedata's is a check on each
    result.
    """

    def swaps(mark: str, x: str) -> bool:
        return mark != x and nfd(f"a{mark}{x}") == f"a{x}{mark}"

    rulers = {
        240: "\u0345"
    }  # 240 is the highest class, and U+0345 its only member in most versions
    for cp in CODE_POINTS:
        if swaps(rulers[240], chr(cp)):
            rulers.setdefault(unicodedata.combining(chr(cp)), chr(cp))
    order = sorted(rulers)
    lowest = rulers[order[0]]
    table = {}
    for cp in CODE_POINTS:
        x = chr(cp)
        if cp in HANGUL or nfd(x) != x:
            continue
        if swaps(rulers[240], x):
            above = next(c for c in order if swaps(rulers[c], x))
            below = order[order.index(above) - 1]
        elif swaps(x, lowest):
            below = order[-1]
        else:
            continue  # a starter: nothing moves across it
        claimed = unicodedata.combining(x)
        if claimed != below:
            sys.exit(f"U+{cp:04X}: combining class {below} measured, unicodedata says {claimed}")
        table[cp] = below
    return table


def change_points(values: dict[int, int], shift: int) -> list[int]:
    """A map with default 0 as sorted `first code point << shift | value` words."""
    words, previous = [], None
    for cp in range(0x110000):
        value = values.get(cp, 0)
        if value != previous:
            words.append(cp << shift | value)
            previous = value
    return words


def emit_array(out: list[str], comment: str, declaration: str, values: list[str]) -> None:
    out += [f"// {comment}", f"static const {declaration}[] = {{"]
    line = "   "
    for value in values:
        if len(line) + len(value) + 2 > 100:
            out.append(line)
            line = "   "
        line += f" {value},"
    out += [line, "};", ""]


def render() -> str:
    classes: dict[int, int] = {}
    for pattern, value in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)):
        for cp in class_members(pattern):
            if cp in classes:
                sys.exit(f"U+{cp:04X} is in two classes")
            classes[cp] = value
    decomposed = decompositions()
    pool, index = [], []
    for cp, text in sorted(decomposed.items()):
        index.append(f"{{0x{cp:x}, {len(pool)}, {len(text)}}}")
        pool += [f"0x{ord(c):x}" for c in text]
    pairs = sorted(compositions(decomposed).items())
    out = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Generated by engine/tools/make_unicode_tables.py; do not edit.",
        f"// Read off tokenizers {tokenizers.__version__}: "
        "classes of Unicode 16.0, NFC of Unicode 9.0.",
        "// clang-format off",
        "",
    ]
    classes_hex = [f"0x{w:x}" for w in change_points(classes, 2)]
    ccc_hex = [f"0x{w:x}" for w in change_points(combining_classes(), 8)]
    emit_array(out, "first code point << 2 | CharClass", "uint32_t kClassChanges", classes_hex)
    emit_array(out, "first code point << 8 | combining class", "uint32_t kCccChanges", ccc_hex)
    emit_array(
        out, "code point, offset and length in the pool", "Decomposition kDecompositions", index
    )
    emit_array(out, "full canonical decompositions", "char32_t kDecompositionPool", pool)
    emit_array(
        out,
        "first, second, composite",
        "Composition kCompositions",
        [f"{{0x{a:x}, 0x{b:x}, 0x{c:x}}}" for (a, b), c in pairs],
    )
    return "\n".join([*out, "// clang-format on", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.parse_args().output.write_text(render(), encoding="ascii")


if __name__ == "__main__":
    main()
