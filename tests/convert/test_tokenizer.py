# SPDX-License-Identifier: Apache-2.0
"""Tokenizer export: every id has a token, and foreign tokenizers are refused."""

import json

import minimal
import pytest
from bonsai_convert import tokenizer
from bonsai_convert.errors import ConvertError
from minimal import VOCAB, edit_json


@pytest.fixture
def folder(checkpoint):
    return checkpoint / "tokenizer"


def change(folder, edit):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_tokens_types_and_merges(folder):
    keys = {k: v.value for k, v in tokenizer.gguf_keys(folder, VOCAB).items()}
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == VOCAB
    assert tokens[256:265] == ["he", "ll", "hell", "hello", *(t for t, _ in minimal.ADDED)]
    assert types[255:266] == [1] * 5 + [3, 3, 3, 4, 4] + [5]
    assert tokens[265:] == [f"[PAD{i}]" for i in range(265, VOCAB)]
    assert keys["tokenizer.ggml.merges"] == ["h e", "l l", "he ll", "hell o"]
    assert keys["tokenizer.ggml.padding_token_id"] == tokens.index("<|endoftext|>")
    assert keys["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")
    assert keys["tokenizer.chat_template"] == minimal.TEMPLATE


def test_merges_as_strings_are_the_same(folder):
    pairs = tokenizer.gguf_keys(folder, VOCAB)

    def edit(t):
        t["model"]["merges"] = [" ".join(m) for m in t["model"]["merges"]]

    change(folder, edit)
    assert tokenizer.gguf_keys(folder, VOCAB) == pairs


def test_byte_alphabet_is_gpt2s():
    letters = tokenizer.byte_alphabet()
    assert len(set(letters)) == 256
    assert (letters[ord("A")], letters[ord(" ")], letters[ord("\n")]) == ("A", "Ġ", "Ċ")
    assert set(letters) == set(minimal.byte_level_alphabet())


def test_template_file_comes_first(folder):
    text = minimal.TEMPLATE + "{# file #}"
    (folder / "chat_template.jinja").write_text(text)
    assert tokenizer.gguf_keys(folder, VOCAB)["tokenizer.chat_template"].value == text


def test_named_templates(folder):
    named = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": minimal.TEMPLATE},
    ]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    assert tokenizer.gguf_keys(folder, VOCAB)["tokenizer.chat_template"].value == minimal.TEMPLATE


def set_model(**options):
    return lambda t: t["model"].update(options)


def set_added(**options):
    return lambda t: t["added_tokens"][0].update(options)


@pytest.mark.parametrize("edit, message", [
    (lambda t: t.update(normalizer=None), "normalizer"),
    (lambda t: t.update(pre_tokenizer={"type": "ByteLevel"}), "pre_tokenizer"),
    (lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "x"}), "pattern"),
    (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "prefix"),
    (lambda t: t["pre_tokenizer"]["pretokenizers"][1].pop("use_regex"), "and pattern"),
    (set_model(type="Unigram"), "not BPE"),
    (set_model(byte_fallback=True), "byte_fallback"),
    (set_model(ignore_merges=True), "ignore_merges"),
    (set_model(vocab={}), "vocab"),
    (set_model(merges=None), "merges"),
    (set_model(merges=[["h", "nowhere"]]), "merge 0"),
    (set_model(merges=["one"]), "merge 0"),
    (lambda t: t["model"]["vocab"].update(hello=VOCAB), "embeds ids 0 to 319"),
    (lambda t: t["model"]["vocab"].update(hello=3), "id 3 is"),
    (lambda t: t["model"]["vocab"].pop("A"), "byte tokens are missing"),
    (set_added(id=VOCAB), "id below 320"),
    (set_added(id="9"), "id below 320"),
    (set_added(id=256), "id 256 is 'he' and"),
    (set_added(lstrip=True), "lstrip"),
    (set_added(content="<s>"), "pad_token|missing"),
    (lambda t: t["added_tokens"].pop(), "</think>"),
])  # fmt: skip
def test_foreign_or_damaged(folder, edit, message):
    change(folder, edit)
    with pytest.raises(ConvertError, match=message):
        tokenizer.gguf_keys(folder, VOCAB)


@pytest.mark.parametrize("template, message", [
    (..., "no chat template"),
    ("[INST] {{ prompt }} [/INST]", "lacks.*im_start"),
    (minimal.TEMPLATE.replace("<think>", ""), "lacks.*think"),
])  # fmt: skip
def test_template_of_another_model(folder, template, message):
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ConvertError, match=message):
        tokenizer.gguf_keys(folder, VOCAB)


def test_missing_tokenizer_json_says_how_to_get_it(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConvertError, match="save_pretrained"):
        tokenizer.gguf_keys(folder, VOCAB)
