# SPDX-License-Identifier: Apache-2.0
"""The tokenizer tests' files: the text form that tests/support/tokenizer_file.h reads.

Run as a program it renews what the C++ test needs next to a tokenizer.json, with `tokenizers` as
the oracle:

    python tests/support/tokenizer_files.py tests/data/tokenizer/tiny
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer

# The prompt template of Flux2KleinPipeline.
TEMPLATE = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
GOLDEN_TEXTS = [
    "",
    TEMPLATE % "",
    TEMPLATE % "a bonsai tree \u6811 12",
    TEMPLATE % "\nleading newline",
    TEMPLATE % "trailing newline\n",
    TEMPLATE % "a <think>special</think> string <|im_end|> inside",
    "<|im_start|><|im_start", "<<think>>", "<|endoftext|>", "a<|endoftext|>\u0301b",
    "I'm you're he'll WE'VE o'clock 'S 'Ll '\u017f 'x ''s",
    "caf\u00e9 cafe\u0301 \u1e9b\u0323 q\u0323\u0307 q\u0307\u0323 \u0958 \u2126 \ufb1d",
    "\u1112\u1161\u11ab \ud55c \ud558\u11ab \u110e\u1165\u11a8\u11a8",
    "3 bonsai, 12345 \u0663\u0664 \u00bd \u2167 x2y",
    "a  b   c \t d\t\te \n\n f \r\n g\u00a0\u3000h   ", "   ", " \n ", "\n\n\n", "  \n  x",
    "hello!!!\n\n (world) ...\r\n -- $%^ ~a -b",
    "\U0001f333\U0001f1ef\U0001f1f5 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u6811\u6728 \u0628\u0648\u0646\u0633\u0627\u064a",
    "\u0000\u0001\u007f\u0085\u2028 \ufeff\ufffe\U0010ffff",
    "a" * 50, "\u0e40\u0e01\u0e34\u0e14", "\u0915\u094d\u0937\u093f",
]  # fmt: skip


def escape(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\\]", lambda m: f"\\x{ord(m[0]):02x}", text)


def tokenizer_text(spec: dict, vocab_size: int = 0, pad_id: int | None = None) -> str:
    """A tokenizer.json in the text form; ids without a token become unused fillers."""
    added = {t["id"]: t for t in spec["added_tokens"]}
    by_id = {i: (1, token) for token, i in spec["model"]["vocab"].items()}
    by_id |= {i: (3 if t["special"] else 4, t["content"]) for i, t in added.items()}
    if pad_id is None:
        pad_id = next(i for i, t in added.items() if t["content"] == "<|endoftext|>")
    lines = [f"p {pad_id}"]
    for i in range(max(vocab_size, max(by_id) + 1)):
        kind, token = by_id.get(i, (5, f"[PAD{i}]"))
        lines.append(f"t {kind} {escape(token)}")
    for merge in spec["model"]["merges"]:
        lines.append("m " + escape(merge if isinstance(merge, str) else " ".join(merge)))
    return "\n".join(lines) + "\n"


def golden_text(oracle: Tokenizer) -> str:
    """One line a text: the escaped text, a tab, the ids."""
    lines = []
    for text in GOLDEN_TEXTS:
        ids = oracle.encode(text, add_special_tokens=False).ids
        lines.append(f"{escape(text)}\t{' '.join(map(str, ids))}")
    return "\n".join(lines) + "\n"


def derived_files(folder: Path) -> dict[Path, str]:
    source = folder / "tokenizer.json"
    return {
        folder / "tokenizer.txt": tokenizer_text(json.loads(source.read_text("utf-8"))),
        folder / "golden.txt": golden_text(Tokenizer.from_file(str(source))),
    }


if __name__ == "__main__":
    for path, text in derived_files(Path(sys.argv[1])).items():
        path.write_text(text, encoding="utf-8", newline="\n")
