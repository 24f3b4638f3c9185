# SPDX-License-Identifier: Apache-2.0
"""Make a tokenizer.json of the real size in Qwen's form: 151,643 BPE tokens, 151,387 merges.

The tokens mean nothing; what counts is their number, their lengths (about 6 bytes) and that every
merge joins two earlier tokens, so that opening such a file costs what opening a real one does.

    python tests/support/real_tokenizer.py FOLDER

writes FOLDER/tokenizer.json and FOLDER/tokenizer_config.json. Standard library only, a second or
two, the same bytes everywhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BPE_TOKENS = 151_643
MERGES = BPE_TOKENS - 256
EMBEDDING_ROWS = 151_936  # of the real text encoder; ids from 151,669 on have no token
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3's added tokens in id order; True marks those that are "special".
ADDED = [
    *((f"<|{n}|>", True) for n in (
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start",
        "box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad",
        "image_pad", "video_pad",
    )),
    ("<tool_call>", False), ("</tool_call>", False),
    *((f"<|{n}|>", False) for n in (
        "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep",
    )),
    ("<tool_response>", False), ("</tool_response>", False),
    ("<think>", False), ("</think>", False),
]  # fmt: skip
CHAT_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] "
    "+ '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is "
    "false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
)


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes, in Qwen's id order."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = 256 - len(kept)
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(moved)]


def vocabulary() -> tuple[dict[str, int], list[list[str]]]:
    """Tokens with their ids, and merges in rank order: rank r makes token 256 + r.

    A linear congruential generator (the constants of Numerical Recipes) picks the two halves among
    short earlier tokens of letters, half of them with a leading space; pairs whose text exists
    already are skipped, as a trainer would never make them.
    """
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    starts, ends = [*letters, "Ġ"], list(letters)
    merges: list[list[str]] = []
    state = 1
    while len(merges) < MERGES:
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        a = starts[(state >> 8) % len(starts)]
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        b = ends[(state >> 8) % len(ends)]
        text = a + b
        if text in vocab or len(text) > 12:
            continue
        vocab[text] = len(vocab)
        merges.append([a, b])
        if len(text) <= 8:
            starts.append(text)
            if len(text) <= 4 and text[0] != "Ġ":
                ends.append(text)
    return vocab, merges


def tokenizer() -> dict:
    vocab, merges = vocabulary()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": BPE_TOKENS + i, "content": text, **flags, "special": special}
            for i, (text, special) in enumerate(ADDED)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated",
                 "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                 "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                    "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tokenizer.json", "w", encoding="utf-8") as f:
        json.dump(tokenizer(), f, ensure_ascii=False)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    with open(folder / "tokenizer_config.json", "w", encoding="utf-8") as f:
        json.dump(settings, f)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
