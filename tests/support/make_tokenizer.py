# SPDX-License-Identifier: Apache-2.0
"""Trains the small tokenizer of the test checkpoints (tests/data/tokenizer_small).

    python tests/support/make_tokenizer.py

Qwen's pipeline on a vocabulary of its own: NFC, the Qwen2 split pattern, byte-level BPE, and the
26 added tokens behind the vocabulary. The ids differ from Qwen's on purpose: an engine has to
read them from the file.
"""

from __future__ import annotations

import json
from pathlib import Path

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

OUT = Path(__file__).resolve().parents[1] / "data" / "tokenizer_small"
VOCABULARY = 1100

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# (text, special) in id order. Tokens that are not special still match as whole strings.
_SPECIAL = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start "
    "quad_end vision_start vision_end vision_pad image_pad video_pad"
)
_FILL = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep"
ADDED = [
    *((f"<|{name}|>", True) for name in _SPECIAL.split()),
    ("<tool_call>", False),
    ("</tool_call>", False),
    *((f"<|{name}|>", False) for name in _FILL.split()),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
]

# Same text as Qwen3's template for plain turns, with its two switches.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

SENTENCES = """\
A small juniper bonsai on a weathered cedar table, soft window light, shallow depth of field.
The gardener's hands trim a crooked pine; it's quiet and they're in no hurry at all.
Ink drawing of a fishing village at dusk, lanterns on the water, 3 boats, 12 gulls, 1 lighthouse.
An old brass telescope beside a stack of maps, dust in the beam of a single lamp.
I'll take the narrow path, you've got the wide one, we'd meet at the stone bridge.
Photograph of a red tram in the rain, wet cobblestones, neon signs that say OPEN and HOTEL.
Watercolour of a fox asleep under ferns, muted greens, rough paper texture, loose brush strokes.
Poster of a rocket above a desert city, flat colours, bold geometric shapes, 1960s print.
Close-up of a clockmaker's bench: springs, gears, tweezers, a magnifying glass (f/2.8, 85 mm).
Portrait of an astronaut holding a cup of tea, studio lighting, film grain, highly detailed.
Ein kleiner Garten hinter dem Haus, Äpfel, Öl, Übung, groß und still im Nebel.
Un café près de la forêt, l'été, où des élèves dessinent à l'encre; naïve mais précis.
El niño pintó una montaña pequeña, un río y una señal que dice "mañana".
Маленькое дерево в снегу, тихий вечер, свет в окне и дым над крышей дома.
雪の中の小さな盆栽、木の机、柔らかい光。静かな庭と赤い橋、山と海の絵。
雪中的小盆景，木桌，柔和的光线。安静的花园和红色的桥，山与海的画。
눈 속의 작은 분재, 나무 책상, 부드러운 빛. 조용한 정원과 붉은 다리.
شجرة صغيرة في الثلج، ضوء هادئ على الطاولة.
Snow ❄️ tree 🌳 cat 🐱 rocket 🚀 star ⭐ heart ❤️ — and a smile 🙂.
def draw(width, height):\n    return [[0] * width for _ in range(height)]  # a grid
"""


def corpus() -> list[str]:
    """Sentences at several frequencies, so that merges have an order and not just ties."""
    lines = SENTENCES.splitlines()
    text = []
    for round_ in range(1, 9):
        for number, line in enumerate(lines):
            if number % round_ == 0:
                text += [line + "\n", line.lower() + "\n\n"]
    return text + ["user\n", "assistant\n", "\n\n", "system\n"] * 30


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.post_processor = None
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    base = tokenizer.get_vocab_size()
    for number, (text, special) in enumerate(ADDED):
        token = AddedToken(text, special=special, normalized=False)
        tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(text) != base + number:
            raise SystemExit(f"{text} got id {tokenizer.token_to_id(text)}, not {base + number}")

    OUT.mkdir(parents=True, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    with open(OUT / "tokenizer.json", "w", encoding="utf-8") as file:
        json.dump(state, file, ensure_ascii=False, indent=0, separators=(",", ":"))
        file.write("\n")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(base + number): {"content": text, **flags, "special": special}
            for number, (text, special) in enumerate(ADDED)
        },
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    with open(OUT / "tokenizer_config.json", "w", encoding="utf-8") as file:
        json.dump(settings, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(f"{base} + {len(ADDED)} ids -> {OUT}")


if __name__ == "__main__":
    main()
