# SPDX-License-Identifier: Apache-2.0
"""Good files of foreign layouts, damaged at random: read, or refused with a ConvertError."""

import json
import random
import struct

import foreign
import minimal
import numpy as np
import pytest
from bonsai_convert import cli, floats, gguf, parts, singles, source, tokenizer
from bonsai_convert.errors import ConvertError
from bonsai_convert.safetensors import Files

ROUNDS = 250
SEEDS = [
    ("transformer", "gemlite051_ternary_int2_g128_state_dict.pt"),
    ("transformer", "gemlite060_binary_int1_g128_state_dict.pt"),
    ("text_encoder", "hqq_4bit_g64_qmodel.pt"),
    ("transformer", "mlx_ternary_2bit_g128.safetensors"),
    ("text_encoder", "mlx_te_4bit_g64.safetensors"),
]
NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


def interesting(good):
    """Spans in which structure lies: weights themselves are only numbers."""
    if good.startswith(b"PK"):
        pickle = good.index(b"data.pkl")
        return [(0, good.index(b"PK\3\4", 4)), (pickle, pickle + 4000), (good.index(b"PK\1\2"),
                len(good))]  # fmt: skip
    if good.startswith(b"GGUF"):
        return [(0, min(len(good), 16384))]
    return [(0, 8 + struct.unpack("<Q", good[:8])[0])]


def mutate(rng, good):
    data = bytearray(good)
    spans = interesting(good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        low, high = rng.choice(spans)
        at = rng.randrange(low, min(high, len(good)))
        kind = rng.randrange(6)
        if kind == 0:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, "little")
        elif kind == 3:
            end = at + rng.randrange(1, 40)
            other = rng.randrange(low, min(high, len(good)))
            data[at:end] = good[other : other + end - at]
        elif kind == 4:
            del data[at : at + rng.choice((1, 2, 16, 4096))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 8)))
    return bytes(data) if data else b"\0"


def read_all(kind, path):
    """Everything that a conversion would read; how many tensors."""
    part = parts.open_part(kind, path)
    files = Files()
    try:
        for tensor in part.tensors.values():
            if tensor.dtype not in floats.RAW_DTYPE or not tensor.nbytes:
                continue
            step = min(tensor.rows, 16)
            assert tensor.raw(files, 0, step).size == step * tensor.row
            target, _ = tensor.stored(files)
            if target.block > 1:
                data, zeros = tensor.packed(files, 0, step, target)
                assert data.size == step * target.row_bytes(tensor.row) and zeros >= 0
            if tensor.row % 128 == 0:
                groups = tensor.groups(files, 0, step)
                assert groups.stats.groups == groups.scales.size == step * tensor.row // 128
    finally:
        files.close()
    return len(part.tensors)


@pytest.mark.parametrize("kind, name", SEEDS)
def test_damaged_files_are_read_or_refused(formats, tmp_path, kind, name):
    good = (formats / name).read_bytes()
    rng = random.Random(name)
    path = tmp_path / name
    path.write_bytes(good)
    assert read_all(kind, path) > 3
    refused = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(ROUNDS):
            path.write_bytes(mutate(rng, good))
            try:
                read_all(kind, path)
            except ConvertError as e:
                refused += 1
                assert "\n" not in str(e) and path.name in str(e)
    assert refused > ROUNDS // 4, "the damage meets what is checked"


def gguf_seeds(originals, folder):
    """name -> (kind, good file of another program, or a model file)."""
    root = originals / "ternary"
    dit = folder / "dit.gguf"
    kinds = ["PQ2_0", "Q2_0", "PTQ1_0", "Q8_0", "F16"]
    foreign.write_gguf(dit, {
        n: foreign.as_type(t, kinds[i % 5] if "_blocks." in n and len(t[2]) == 2 else "F32")
        for i, (n, t) in enumerate(foreign.bfl(foreign.read(root, "transformer")).items())
    })  # fmt: skip
    text = folder / "text.gguf"
    tokenizer = json.loads((root / "tokenizer" / "tokenizer.json").read_text())
    keys = foreign.tokenizer_keys(tokenizer, minimal.TEMPLATE, minimal.VOCAB)
    foreign.write_gguf(text, {
        n: foreign.as_type(t, "Q4_0" if len(t[2]) == 2 else "F32")
        for n, t in foreign.llama(foreign.read(root, "text_encoder")).items()
    }, keys)  # fmt: skip
    model = folder / "model.gguf"
    assert cli.main([str(root), "-o", str(model)]) == 0
    return {"transformer": dit, "text_encoder": text, "model": model}


def read_gguf(kind, path):
    """All that a conversion would make of it."""
    if kind == "model":
        return len(cli.Checkpoint(source.open_source(str(path), None), None).tensors)
    part = parts.open_part(kind, path)
    if kind == "transformer":
        singles.transformer_settings(part)
    else:
        singles.text_settings(part, gguf.Reader(path).keys)
        tokenizer.gguf_keys(path, minimal.VOCAB)
    return read_all(kind, path)


@pytest.mark.parametrize("kind", ["transformer", "text_encoder", "model"])
def test_damaged_gguf_files_are_read_or_refused(originals, tmp_path, kind):
    path = gguf_seeds(originals, tmp_path)[kind]
    good, rng, refused = path.read_bytes(), random.Random(kind), 0
    assert read_gguf(kind, path) > 3
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(100):
            path.write_bytes(mutate(rng, good))
            try:
                read_gguf(kind, path)
            except ConvertError as e:
                refused += 1
                assert "\n" not in str(e) and path.name in str(e)
    assert refused > 30, "the damage meets what is checked"
