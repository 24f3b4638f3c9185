# SPDX-License-Identifier: Apache-2.0
"""Turn tokenizer.json into the tokenizer keys of the model file.

The engine implements one pipeline: added tokens, NFC, the Qwen2 pre-tokenising pattern, the
byte-level alphabet, BPE by rank. tokenizer.json is the source of truth and is checked to ask for
exactly that; vocab.json, merges.txt and added_tokens.json are copies and are not read.
"""

from __future__ import annotations

from pathlib import Path

from . import gguf, jsonfile
from .config import Settings
from .errors import ConvertError
from .jsonfile import brief

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MAX_FILE = 1 << 26  # bytes of tokenizer.json; Qwen's has 11 MB
MAX_TEMPLATE = 1 << 20
MAX_MERGES = 1 << 22
MAX_ADDED = 4096  # as the engine reads
MAX_ADDED_BYTES = 256
# Qwen2's published pattern, which the engine has in code.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_STEPS = (
    {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
)
_RESAVE = "save the tokenizer again with transformers (AutoTokenizer ... save_pretrained)"
_ONLY_QWEN = "the engine implements Qwen2's tokenizer only"
# What klein's prompt is made of; a template without them belongs to another model.
_TEMPLATE_MARKERS = ("<|im_start|>", "<|im_end|>", "<|im_start|>assistant")
_EMPTY_THINKING = ("<think>\n\n</think>\n\n", r"<think>\n\n</think>\n\n")
_PROMPT_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


def _check_steps(s: Settings) -> None:
    """Normaliser, pre-tokeniser and model options must be the ones the engine has."""
    if s.get("normalizer", None) != {"type": "NFC"}:
        raise s.fail("normalizer", "{'type': 'NFC'}", _ONLY_QWEN)
    pre = s.get("pre_tokenizer", None)
    steps = pre.get("pretokenizers") if isinstance(pre, dict) else None
    if (
        not isinstance(steps, list)
        or len(steps) != 2
        or not all(isinstance(x, dict) for x in steps)
    ):
        raise s.fail("pre_tokenizer", "a sequence of Split and ByteLevel", _ONLY_QWEN)
    split, byte_level = steps
    if any(split.get(k) != v for k, v in _STEPS[0].items()):
        raise ConvertError(
            f"{s.path}: 'pre_tokenizer' splits by {brief(split.get('pattern'))}, expected Qwen2's "
            f"pattern; {_ONLY_QWEN}"
        )
    if any(byte_level.get(k) != v for k, v in _STEPS[1].items()):
        raise s.fail(
            "pre_tokenizer", "ByteLevel without prefix space and pattern as second step", _ONLY_QWEN
        )
    model = s.get("model", None)
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise ConvertError(f"{s.path}: 'model' is not BPE; {_ONLY_QWEN}")
    for key in (
        "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback", "ignore_merges",
    ):  # fmt: skip
        if model.get(key):
            raise ConvertError(
                f"{s.path}: model option '{key}' is {brief(model[key])}; {_ONLY_QWEN}"
            )


def _vocabulary(s: Settings, size: int) -> tuple[list[str | None], dict[str, int]]:
    vocab = s.data["model"].get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise ConvertError(f"{s.path}: model 'vocab' is no object; {_RESAVE}")
    tokens: list[str | None] = [None] * size
    for text, number in vocab.items():
        if type(number) is not int or not 0 <= number < size:
            raise ConvertError(
                f"{s.path}: token {brief(text)} has id {brief(number)}, but the text encoder "
                f"embeds ids 0 to {size - 1}; tokenizer and encoder are from different models"
            )
        if tokens[number] is not None:
            raise ConvertError(
                f"{s.path}: id {number} is {brief(tokens[number])} and {brief(text)}"
            )
        tokens[number] = text
    absent = [c for c in byte_alphabet() if c not in vocab]
    if absent:
        raise ConvertError(
            f"{s.path}: {len(absent)} of the 256 byte tokens are missing, first {absent[0]!r}; "
            + _ONLY_QWEN
        )
    return tokens, vocab


def _merges(s: Settings, vocab: dict[str, int]) -> list[str]:
    """Merge rules as 'a b', whether the file has them as strings or as pairs."""
    merges = s.data["model"].get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise ConvertError(f"{s.path}: model 'merges' is no list or too long; {_RESAVE}")
    rules = []
    for rank, rule in enumerate(merges):
        pair = rule.split(" ") if isinstance(rule, str) else rule
        good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        # An empty part would make a rule that applies to its own result for ever.
        good = good and all(x and " " not in x for x in pair)
        if not good or pair[0] not in vocab or pair[1] not in vocab or "".join(pair) not in vocab:
            raise ConvertError(
                f"{s.path}: merge {rank} ({brief(rule)}) does not join two tokens to one; {_RESAVE}"
            )
        rules.append(f"{pair[0]} {pair[1]}")
    return rules


def _add_tokens(s: Settings, tokens: list[str | None]) -> tuple[list[int], dict[str, int]]:
    """Place the added tokens; returns all token types and the ids of the added ones."""
    types = [NORMAL if t is not None else UNUSED for t in tokens]
    added = s.get("added_tokens", [])
    ids: dict[str, int] = {}
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise s.fail("added_tokens", f"a list of at most {MAX_ADDED}", _RESAVE)
    for a in added:
        text, number = (a.get("content"), a.get("id")) if isinstance(a, dict) else (None, None)
        good = isinstance(text, str) and 0 < len(text.encode()) <= MAX_ADDED_BYTES
        if not good or text in ids or type(number) is not int or not 0 <= number < len(tokens):
            raise ConvertError(
                f"{s.path}: added token {brief(a)}: expected a new text and an id below "
                f"{len(tokens)} (the rows of the text encoder's embedding); {_RESAVE}"
            )
        flags = [k for k in ("lstrip", "rstrip", "single_word", "normalized") if a.get(k)]
        if flags:
            raise ConvertError(f"{s.path}: added token {brief(text)} has {flags}; {_ONLY_QWEN}")
        if tokens[number] not in (None, text):
            raise ConvertError(
                f"{s.path}: id {number} is {brief(tokens[number])} and {brief(text)}"
            )
        tokens[number] = text
        types[number] = CONTROL if a.get("special") else USER_DEFINED
        ids[text] = number
    absent = [t for t in _PROMPT_TOKENS if t not in ids]
    if absent:
        raise ConvertError(f"{s.path}: added tokens {absent} missing; {_ONLY_QWEN}")
    return types, ids


def _named_token(settings: Settings, key: str, default: str, ids: dict[str, int]) -> int:
    value = settings.get(key, default)
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or text not in ids:
        raise settings.fail(key, "an added token of tokenizer.json", _RESAVE)
    return ids[text]


def _chat_template(place: Path, settings: Settings) -> str:
    path = place / "chat_template.jinja"
    try:
        text = jsonfile.read_bytes(path, MAX_TEMPLATE).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        path = settings.path
        text = settings.get("chat_template", None)
        if isinstance(text, list):  # several named templates
            named = (t for t in text if isinstance(t, dict) and t.get("name") == "default")
            text = next(named, {}).get("template")
    except (OSError, UnicodeDecodeError) as e:
        raise ConvertError(f"{path}: cannot be read: {e}") from e
    if not isinstance(text, str):
        raise ConvertError(
            f"{place}: no chat template (chat_template.jinja, or 'chat_template' in "
            f"tokenizer_config.json); {_RESAVE}"
        )
    # Templates build these strings by pieces, so only the pieces can be looked for.
    parts = [m for m in _TEMPLATE_MARKERS if m not in text]
    if not any(m in text for m in _EMPTY_THINKING):
        parts.append(_EMPTY_THINKING[1])
    if parts:
        raise ConvertError(
            f"{path}: the chat template lacks {parts}, so it does not produce klein's prompt "
            "'<|im_start|>user ... <|im_end|> ... <think></think>'; use the model's own tokenizer"
        )
    return text


def _from_gguf(path: Path) -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json, as far as they are read here, of a GGUF file."""
    keys = gguf.Reader(path).keys

    def listed(name: str, kind: type) -> list:
        value = keys.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list) or not all(type(v) is kind for v in value):
            raise ConvertError(f"{path}: key 'tokenizer.ggml.{name}' is no list of {kind.__name__}")
        return value

    for name, wanted in (("model", "gpt2"), ("pre", "qwen2")):
        found = keys.get(f"tokenizer.ggml.{name}")
        if found != wanted:
            raise ConvertError(
                f"{path}: key 'tokenizer.ggml.{name}' is {brief(found)}, expected '{wanted}'; "
                + _ONLY_QWEN
            )
    tokens, types = listed("tokens", str), listed("token_type", int)
    if len(tokens) != len(types):
        raise ConvertError(f"{path}: {len(tokens)} tokens, {len(types)} types of tokens")
    normal = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == NORMAL}
    if len(normal) != types.count(NORMAL):
        raise ConvertError(f"{path}: a token stands twice in 'tokenizer.ggml.tokens'")
    settings = {"chat_template": keys.get("tokenizer.chat_template")}
    for key, name in (("pad_token", "padding"), ("eos_token", "eos")):
        number = keys.get(f"tokenizer.ggml.{name}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            settings[key] = tokens[number]
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"pretokenizers": list(_STEPS)},
        "model": {"type": "BPE", "vocab": normal, "merges": listed("merges", str)},
        "added_tokens": [
            {"id": i, "content": t, "special": kind == CONTROL}
            for i, (t, kind) in enumerate(zip(tokens, types))
            if kind in (CONTROL, USER_DEFINED)
        ],
    }, settings


def files_of(keys: dict[str, object]) -> dict[str, dict | str]:
    """Content of the files of a tokenizer folder that gives these keys, as `gguf_keys` does."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": t, **flags, "special": kind == CONTROL}
        for i, (t, kind) in enumerate(zip(tokens, types))
        if kind in (CONTROL, USER_DEFINED)
    ]
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
               "use_regex": False}  # fmt: skip
    main = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            _STEPS[0], _STEPS[1] | {"trim_offsets": False}
        ]},
        "post_processor": decoder,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == NORMAL},
            "merges": keys["tokenizer.ggml.merges"],
        },
    }  # fmt: skip
    named = {
        "pad_token": tokens[keys["tokenizer.ggml.padding_token_id"]],
        "eos_token": tokens[keys["tokenizer.ggml.eos_token_id"]],
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "bos_token": None,
        "unk_token": None, "clean_up_tokenization_spaces": False, "model_max_length": 131072,
    }  # fmt: skip
    return {
        "tokenizer.json": main,
        "tokenizer_config.json": config | named,
        "chat_template.jinja": keys["tokenizer.chat_template"],
    }


def gguf_keys(place: Path, vocab_size: int) -> dict[str, gguf.Value]:
    """The tokenizer.* keys, from a folder or a GGUF file. Rows of the embedding without a token
    become unused '[PADn]'."""
    if place.is_file():
        data, options = _from_gguf(place)
        s, settings = Settings(data, label=str(place)), Settings(options, label=str(place))
    else:
        s = Settings(place / "tokenizer.json", _RESAVE, MAX_FILE)
        settings = Settings(place / "tokenizer_config.json", _RESAVE, MAX_FILE)
    _check_steps(s)
    tokens, vocab = _vocabulary(s, vocab_size)
    merges = _merges(s, vocab)
    types, added = _add_tokens(s, tokens)
    return {
        "tokenizer.ggml.model": gguf.string("gpt2"),
        "tokenizer.ggml.pre": gguf.string("qwen2"),
        "tokenizer.ggml.tokens": gguf.string_array(
            f"[PAD{i}]" if t is None else t for i, t in enumerate(tokens)
        ),
        "tokenizer.ggml.token_type": gguf.i32_array(types),
        "tokenizer.ggml.merges": gguf.string_array(merges),
        "tokenizer.ggml.padding_token_id": gguf.u32(
            _named_token(settings, "pad_token", "<|endoftext|>", added)
        ),
        "tokenizer.ggml.eos_token_id": gguf.u32(
            _named_token(settings, "eos_token", "<|im_end|>", added)
        ),
        "tokenizer.chat_template": gguf.string(_chat_template(place, settings)),
    }
