# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of the real size goes through the export, and through the tokenizers library."""

import importlib.util
from pathlib import Path

import pytest
from bonsai_convert import tokenizer

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "tests" / "support" / "real_tokenizer.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("real_tokenizer", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("tokenizer")
    module.write(folder)
    return module, folder


def test_sizes_are_qwens(made):
    module, folder = made
    keys = {k: v.value for k, v in tokenizer.gguf_keys(folder, module.EMBEDDING_ROWS).items()}
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(keys["tokenizer.ggml.merges"]) == 151_387
    assert len(tokens) == 151_936 == len(set(tokens))
    assert [types.count(t) for t in (1, 3, 4, 5)] == [151_643, 14, 12, 267]
    assert tokens.index("<think>") == 151_667
    assert keys["tokenizer.ggml.eos_token_id"] == 151_645


def test_the_library_reads_it(made):
    library = pytest.importorskip("tokenizers")
    _, folder = made
    t = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = t.encode("<|im_start|>user\nsome words, 12 of them<|im_end|>").ids
    assert ids[0] == 151_644 and ids[-1] == 151_645
    assert t.decode(ids, skip_special_tokens=False).startswith("<|im_start|>user\nsome words, 12")
