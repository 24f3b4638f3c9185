# SPDX-License-Identifier: Apache-2.0
"""GGUF files of other programs that lie: good containers with parts of a model in them that cannot
be. Readers: 'dit' and 'qwen', given as --transformer and --text-encoder."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .hostile_gguf import ARRAY, F32, I32, STRING, U32, array, gguf, key, record, scalar, string

_INF = struct.unpack("<f", b"\x00\x00\x80\x7f")[0]


def _file(tensors: dict[str, tuple[int, ...]], keys=(), kinds=None) -> bytes:
    """Tensors of zeros, F32 unless `kinds` gives (type id, bytes); shapes rows first."""
    records, at = [], 0
    for name, shape in tensors.items():
        kind, size = (kinds or {}).get(name, (0, 0))
        count = 1
        for n in shape:
            count *= n
        records.append(record(name, tuple(reversed(shape)), kind, at))
        at += -(-(size or 4 * count) // 32) * 32
    return gguf(keys, records, bytes(at))


_DIT = {
    "img_in.weight": (8, 4),
    "txt_in.weight": (8, 12),
    "time_in.in_layer.weight": (8, 6),
    "double_blocks.0.img_attn.norm.query_norm.scale": (8,),
    "double_blocks.0.img_mlp.2.weight": (8, 24),
    "single_blocks.0.linear2.weight": (8, 32),
}


def _dit() -> Iterator[tuple[str, str, bytes]]:
    def change(name: str, words: str, **more):
        there = {n: s for n, s in (_DIT | more.pop("tensors", {})).items() if s is not None}
        return name, words, _file(there, **more)

    qkv, swap = "double_blocks.0.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.weight"
    head = "double_blocks.0.img_attn.norm.query_norm.scale"
    yield "nothing", "no transformer in it", _file({"t": (8,)})
    yield "a-text-encoder", "no transformer in it", _file({"token_embd.weight": (8, 8)})
    yield change("two", "cannot be told", tensors={"x.img_in.weight": (8, 4)})
    yield change("qkv-no-thirds", "equal height", tensors={qkv: (8, 8)})
    yield change("qkv-vector", "equal height", tensors={qkv: (24,)})
    yield change("modulation-odd", "a shift and a scale", tensors={swap: (7, 8)})
    yield change("dev", "FLUX.2 dev", tensors={"guidance_in.in_layer.weight": (8, 8)})
    yield change("rotated", "Hadamard", keys=[key("prism.hadamard.n", U32, scalar(U32, 1))])
    yield change("type-q3-k", "Q3_K is not read", tensors={"double_blocks.0.x.weight": (1, 256)},
                 kinds={"double_blocks.0.x.weight": (11, 110)})  # fmt: skip
    yield change("type-f64", "F64 is not read", tensors={"double_blocks.0.x.weight": (1, 4)},
                 kinds={"double_blocks.0.x.weight": (28, 32)})  # fmt: skip
    yield change("img-in-vector", "expected a matrix", tensors={"img_in.weight": (8,)})
    yield change("img-in-convolution", "expected a matrix", tensors={"img_in.weight": (8, 2, 2)})
    yield change("no-txt-in", "'context_embedder.weight' missing", tensors={"txt_in.weight": None})
    yield change("no-head", "norm_q.weight' missing", tensors={head: None})
    yield change("head-no-divisor", "is no multiple of 3", tensors={head: (3,)})
    yield change("head-no-axes", "is no multiple of 4", tensors={head: (2,)})


_QWEN = {
    "token_embd.weight": (8, 8),
    "blk.0.attn_q_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (8, 8),
    "blk.0.ffn_gate.weight": (8, 8),
    "blk.26.attn_q_norm.weight": (8,),
}


def _vocabulary() -> list[bytes]:
    """Keys of llama.cpp for a tokenizer with two letters."""
    keys = {
        "model": (STRING, string("gpt2")),
        "pre": (STRING, string("qwen2")),
        "tokens": (ARRAY, array(STRING, ["a", "b"])),
        "token_type": (ARRAY, array(I32, [1, 1])),
        "merges": (ARRAY, array(STRING, [])),
    }
    return [key(f"tokenizer.ggml.{n}", *v) for n, v in keys.items()]


def _qwen() -> Iterator[tuple[str, str, bytes]]:
    def change(name: str, words: str, keys=None, **tensors):
        there = {n: s for n, s in (_QWEN | tensors).items() if s is not None}
        return name, words, _file(there, _vocabulary() if keys is None else keys)

    yield "nothing", "no text encoder in it", _file({"t": (8,)})
    yield change("no-head", "q_norm.weight' missing", **{"blk.0.attn_q_norm.weight": None})
    yield change("queries-odd", "is no multiple of 8", **{"blk.0.attn_q.weight": (6, 8)})
    yield change("embedding-vector", "expected a matrix", **{"token_embd.weight": (8,)})
    yield change("keys-vector", "expected a matrix", **{"blk.0.attn_k.weight": (8,)})
    yield change("layers-too-few", "are to be read", **{"blk.26.attn_q_norm.weight": None})
    yield change("layer-huge", "from 1 to 512", **{"blk.9999.attn_q_norm.weight": (8,)})
    for name, value in (("infinite", _INF), ("zero", 0.0)):
        theta = key("qwen3.rope.freq_base", F32, scalar(F32, value))
        yield change(f"theta-{name}", "'rope_theta'", [theta, *_vocabulary()])
    eps = key("qwen3.attention.layer_norm_rms_epsilon", STRING, string("x"))
    yield change("epsilon-text", "'rms_norm_eps'", [eps, *_vocabulary()])
    yield change("no-tokenizer", "no tokenizer in it or beside it", [])


def cases() -> Iterator[tuple[str, str, str, bytes]]:
    """(file, reader, words in the error, bytes)."""
    for reader, found in (("dit", _dit()), ("qwen", _qwen())):
        for name, words, data in found:
            yield f"{reader}/{name}.gguf", reader, words, data
