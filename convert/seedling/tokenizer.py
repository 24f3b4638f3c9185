# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE tokenizer in the Qwen3 layout, trained on captions of the grammar.

`python -m convert.seedling.tokenizer OUTDIR` trains it and writes the tokenizer directory.
"""

import json
import sys
from pathlib import Path

VOCAB = 2560  # rows of the embedding: BPE tokens, then the 26 added tokens
MAX_TOKENS = 64
CAPTIONS = 80_000

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# Pre-token pattern of the published Qwen2/Qwen3 tokenizer files.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PREFIX = "<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
# Gives Qwen3's string for plain turns, with its enable_thinking switch.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
)


def _corpus():
    from . import scenes

    grammar = scenes.Grammar()
    it = grammar.split(20, held=False)
    for _ in range(CAPTIONS):
        yield next(it).caption
    for thing in grammar.emoji:  # every name at least a few times, also rare ones
        for name in thing.names:
            yield from [f"a {name} {name}"] * 4
    yield from ["user\n", "assistant\n", "\n\n"] * 2000


def train():
    """A tokenizers.Tokenizer with VOCAB entries."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCAB - len(SPECIAL) - len(PLAIN),
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN])
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    return tok


def write(tok, folder):
    """Write the files of a Qwen2Tokenizer directory."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def dump(name, obj):
        (folder / name).write_text(
            json.dumps(obj, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )

    tok.save(str(folder / "tokenizer.json"))
    model = json.loads(tok.to_str())["model"]
    dump("vocab.json", model["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    ids = {t: tok.token_to_id(t) for t in (*SPECIAL, *PLAIN)}
    dump("added_tokens.json", ids)
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    dump(
        "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": t, **flags, "special": t in SPECIAL} for t, i in ids.items()
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "padding_side": "right",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


class Encoder:
    """Captions to padded ids, as the klein pipeline makes them."""

    def __init__(self, folder):
        from tokenizers import Tokenizer

        self.tok = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.pad = self.tok.token_to_id("<|endoftext|>")

    def __call__(self, captions):
        """([[id] * MAX_TOKENS], [number of real tokens])."""
        enc = self.tok.encode_batch([PREFIX + c + SUFFIX for c in captions])
        ids = [e.ids[:MAX_TOKENS] for e in enc]
        return [i + [self.pad] * (MAX_TOKENS - len(i)) for i in ids], [len(i) for i in ids]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(train(), sys.argv[1])
