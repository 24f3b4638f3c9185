# SPDX-License-Identifier: Apache-2.0
"""safetensors and JSON files that lie, each for one place of the checkpoint that
tests/convert/minimal.py writes."""

from __future__ import annotations

import copy
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

import minimal  # noqa: E402

WEIGHTS = minimal.WEIGHTS["vae"]
_GOOD = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def _safetensors() -> Iterator[tuple[str, str, bytes]]:
    def raw(name: str, words: str, header, data: bytes = bytes(12), length: int | None = None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return name, words, struct.pack("<Q", len(text) if length is None else length) + text + data

    def entry(name: str, words: str, **changes):
        return raw(name, words, {"a": _GOOD | changes})

    yield "empty", "too short for safetensors", b""
    yield "length-cut", "too short for safetensors", b"\2\0\0\0"
    yield "web-page", "expected 2 to", b"<!DOCTYPE html><html></html>"
    yield "git-lfs-pointer", "run 'git lfs pull'", b"version https://git-lfs.github.com/spec/v1\n"
    yield raw("length-wraps", "header length 18446744073709551615", b"{}", length=(1 << 64) - 1)
    yield raw("length-beyond-end", "the file ends after", b"{}", length=5000)
    yield raw("length-zero", "header length 0", b"", length=0)
    yield raw("header-not-json", "not valid JSON", b"{'a'}")
    yield raw("header-list", "it is no object", [1])
    yield raw("header-utf16", "not valid Unicode", '{"a": 1}'.encode("utf-16"))
    yield raw("header-bom", "not valid JSON", b"\xef\xbb\xbf{}")
    yield raw("header-nested", "nested deeper", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}")
    yield raw("header-digits", "a number of 5000 digits", b'{"a": ' + b"9" * 5000 + b"}")
    yield raw("header-nan", "NaN is no JSON", b'{"a": NaN}')
    yield raw("header-surrogate", "not valid Unicode", b'{"a\\ud800": {}}')
    yield raw("notes-numbers", "'__metadata__' does not map", {"__metadata__": {"format": 1}})
    yield raw("name-twice", "the name 'a' occurs twice", b'{"a": 1, "a": 2}')
    yield raw("name-empty", "has the name ''", {"": _GOOD})
    yield raw("name-escape", "has the name '\\x1b[2J'", {"\x1b[2J": _GOOD})
    yield raw("entry-number", "header entry is no object", {"a": 7})
    yield entry("dtype-unknown", "unknown dtype 'F12'", dtype="F12")
    yield entry("dtype-list", "unknown dtype ['F16']", dtype=["F16"])
    yield entry("shape-negative", "bad shape [2, -3]", shape=[2, -3])
    yield entry("shape-float", "bad shape [2, 3.0]", shape=[2, 3.0])
    yield entry("shape-bool", "bad shape [6, True]", shape=[6, True])
    yield entry("shape-missing", "bad shape None", shape=None)
    yield entry("shape-long", "bad shape a list of 3000", shape=[1] * 3000)
    yield entry("shape-product-wraps", "bad shape", shape=[1 << 62, 4])
    yield entry("shape-larger-than-data", "needs 4000 bytes, the header gives it 12", shape=[2000])
    yield entry("offsets-swapped", "bad data_offsets [12, 0]", data_offsets=[12, 0])
    yield entry("offsets-one", "bad data_offsets [0]", data_offsets=[0])
    yield entry("offsets-negative", "bad data_offsets", data_offsets=[-12, 0])
    yield entry("offsets-wrap", "bad data_offsets", data_offsets=[(1 << 64) - 12, 1 << 64])
    yield entry("offsets-beyond-end", "half downloaded", shape=[2, 30], data_offsets=[0, 120])
    yield entry("gap-before", "4 bytes before tensor 'a' belong to none", data_offsets=[4, 16])
    yield entry("data-behind", "6 bytes behind its last tensor", shape=[3], data_offsets=[0, 6])
    yield raw("overlap", "overlaps its neighbour", {"a": _GOOD, "b": _GOOD})
    yield raw("packed", "tensors missing", {"a": _GOOD})


def _json(place: str, base: dict) -> callable:
    stem = place.replace("/", "-").removesuffix(".json")

    def change(name: str, words: str, **changes):
        data = {k: v for k, v in (base | changes).items() if v is not ...}
        return f"json/{stem}-{name}.json", place, words, json.dumps(data).encode()

    return change


def _settings() -> Iterator[tuple[str, str, str, bytes]]:
    for place, base in minimal.SETTINGS.items():
        stem = place.replace("/", "-").removesuffix(".json")
        text = json.dumps(base)
        cut = text[: len(text) // 2].encode()
        yield f"json/{stem}-cut.json", place, "not valid JSON", cut
    place = "transformer/config.json"
    change = _json(place, minimal.SETTINGS[place])
    yield change("layers-text", "expected a whole number from 1", num_layers="1")
    yield change("layers-bool", "expected a whole number from 1", num_layers=True)
    yield change("layers-huge", "expected a whole number from 1 to 256", num_layers=10**9)
    yield change("layers-missing", "'num_layers': expected a value, found nothing", num_layers=...)
    yield change("axes-nested", "expected a list of 1 to 16", axes_dims_rope=[[32]] * 4)
    yield change("axes-long", "found a list of 9000", axes_dims_rope=[2] * 9000)
    yield change("eps-negative", "expected a number from", eps=-1)
    yield change("class-escape", "'_class_name': expected", _class_name="\x1b]0;x\x07")
    text = json.dumps(minimal.SETTINGS[place])
    wrong = text.replace('"eps": 1e-06', '"eps": NaN')
    yield "json/transformer-config-eps-nan.json", place, "NaN is no JSON", wrong.encode()
    wrong = text.replace('"eps": 1e-06', '"eps": 1e999')
    yield "json/transformer-config-eps-inf.json", place, "expected a number", wrong.encode()
    wrong = text.replace('"eps"', '"num_layers"')
    yield "json/transformer-config-twice.json", place, "occurs twice", wrong.encode()
    yield "json/model_index-list.json", "model_index.json", "expected a JSON object", b"[]"
    index = _json("model_index.json", minimal.SETTINGS["model_index.json"])
    yield index("layers-descend", "ascending layer numbers", text_encoder_out_layers=[2, 1])
    yield index("layers-none", "expected a list of 1 to 16", text_encoder_out_layers=[])
    place = "vae/diffusion_pytorch_model.safetensors.index.json"
    for name, shard in (("outside", "../x.safetensors"), ("dots", ".."), ("number", 7)):
        data = json.dumps({"weight_map": {"a": shard}}).encode()
        yield f"json/index-{name}.json", place, "must map tensor names to file names", data
    yield "json/index-list.json", place, "must map tensor names to file names", b"[]"


def _tokenizers() -> Iterator[tuple[str, str, str, bytes]]:
    place = "tokenizer/tokenizer.json"

    def change(name: str, words: str, edit):
        data = copy.deepcopy(minimal.tokenizer())
        edit(data)
        return f"json/tokenizer-{name}.json", place, words, json.dumps(data).encode()

    def vocab(name: str, words: str, **ids):
        return change(name, words, lambda d: d["model"]["vocab"].update(ids))

    def merge(name: str, words: str, rule):
        return change(name, words, lambda d: d["model"]["merges"].append(rule))

    def added(name: str, words: str, **fields):
        return change(name, words, lambda d: d["added_tokens"][0].update(fields))

    yield vocab("id-minus-one", "token 'he' has id -1", he=-1)
    yield vocab("id-huge", "has id 4294967296", he=1 << 32)
    yield vocab("id-text", "has id '5'", he="5")
    yield vocab("id-twice", "id 0 is ", he=0)
    yield change("vocab-list", "model 'vocab' is no object", lambda d: d["model"].update(vocab=[]))
    yield change(
        "byte-missing", "256 byte tokens are missing", lambda d: d["model"]["vocab"].pop("!")
    )
    yield change("merges-text", "'merges' is no list", lambda d: d["model"].update(merges="a b"))
    join = "does not join two tokens to one"
    yield merge("merge-loops", join, ["", "he"])
    yield merge("merge-loops-text", join, "he ")
    yield merge("merge-three", join, ["h", "e", "l"])
    yield merge("merge-number", join, ["h", 7])
    yield merge("merge-part-unknown", join, ["zz", "h"])
    yield merge("merge-result-unknown", join, ["e", "h"])
    yield added("added-minus-one", "expected a new text and an id below", id=-1)
    yield added("added-beyond-end", "expected a new text and an id below 320", id=320)
    yield added("added-empty", "expected a new text", content="")
    yield added("added-list", "expected a new text", content=["a"])
    yield added("added-long", "expected a new text", content="x" * 300)
    twice = "<|im_end|>"
    yield added("added-twice", "expected a new text", content=twice)
    yield change("added-object", "added_tokens", lambda d: d.update(added_tokens={"a": 1}))
    surrogate = json.dumps(minimal.tokenizer()).replace('"he"', '"\\ud800"').encode()
    yield "json/tokenizer-surrogate.json", place, "not valid Unicode", surrogate
    place = "tokenizer/tokenizer_config.json"
    config = _json(place, minimal.SETTINGS[place])
    yield config("pad-list", "'pad_token': expected an added token", pad_token=["a"])
    yield config("pad-nested", "'pad_token': expected an added token", pad_token={"content": {}})
    yield config("template-number", "no chat template", chat_template=7)
    named = [{"name": ["default"], "template": "x"}, 3]
    yield config("template-names", "no chat template", chat_template=named)


def cases() -> Iterator[tuple[str, str, str, bytes]]:
    """(file, place, words, bytes)"""
    for name, words, data in _safetensors():
        yield f"safetensors/{name}.safetensors", WEIGHTS, words, data
    yield from _settings()
    yield from _tokenizers()
