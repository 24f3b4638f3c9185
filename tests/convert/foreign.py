# SPDX-License-Identifier: Apache-2.0
"""Writes the parts of a checkpoint as other programs do, with code that shares nothing with the
converter: names come from tables made with diffusers, blocks are packed bit by bit."""

import json
import re
import sys
from pathlib import Path

import minimal
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # behind this folder, whose conftest others import

from support.hostile_gguf import (  # noqa: E402
    F32,
    I32,
    STRING,
    U32,
    array,
    gguf,
    key,
    record,
    scalar,
    string,  # noqa: F401  (for tests)
)

FORMATS = ROOT / "tests" / "data" / "formats"
_NUMPY = {"F16": "<f2", "F32": "<f4", "I64": "<i8"}
# Type id, weights and bytes of a block.
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18),
    "Q8_0": (8, 32, 34), "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18), "PQ2_0": (142, 128, 34),
    "PTQ1_0": (143, 128, 28), "Q2_K": (10, 256, 84), "Q4_K": (12, 256, 144),
}  # fmt: skip


def values(tensor):
    """float32 of a (dtype, bytes, shape) of minimal.read_safetensors."""
    dtype, data, shape = tensor
    if dtype == "BF16":
        wide = data.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return data.view(_NUMPY[dtype]).reshape(shape).astype(np.float32)


def read(root, part):
    """name -> (dtype, array in the source's bytes, shape) of one part of a checkpoint."""
    return minimal.read_safetensors(root / minimal.WEIGHTS[part])


def _rows(tensor):
    dtype, data, shape = tensor
    return data.reshape(shape[0], -1)


def _of_block(name):
    m = re.match(r"(double|single)_blocks\.(\d+)\.", name)
    return None if m is None else (m[1], int(m[2]))


def bfl(tensors):
    """The transformer under BFL names."""
    out = {}
    for row in json.loads((FORMATS / "flux2_klein4b_names.json").read_text())["tensors"]:
        block = _of_block(row["bfl"])
        if block is not None and block[1] > 0:
            continue  # the small checkpoint has one block of each kind
        parts = [tensors[n] for n in row["diffusers"]]
        dtype, data, shape = parts[0]
        if len(parts) > 1:
            data = np.concatenate([_rows(p) for p in parts])
            shape = (sum(p[2][0] for p in parts), *shape[1:])
        elif "swap" in row["op"]:
            half = shape[0] // 2
            data = np.concatenate([_rows(parts[0])[half:], _rows(parts[0])[:half]])
        out[row["bfl"]] = (dtype, data.reshape(-1), shape)
    return out


def ldm(tensors):
    """The VAE under latent-diffusion names, attention as 1x1 convolutions."""
    table = json.loads((FORMATS / "flux2_vae_names.json").read_text())
    back = {row["diffusers"]: row["bfl"] for row in table}
    out = {}
    for name, (dtype, data, shape) in tensors.items():
        theirs = back.get(name, name)
        if ".attn_1." in theirs and len(shape) == 2:
            shape = (*shape, 1, 1)
        out[theirs] = (dtype, data, shape)
    return out


_LLAMA = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama(tensors):
    """The text encoder under llama.cpp names."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    out = {}
    for name, tensor in tensors.items():
        m = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", name)
        out[f"blk.{m[1]}.{_LLAMA[m[2]]}.weight" if m else outer[name]] = tensor
    return out


def codes_and_scales(x):
    """Ternary codes [N, K] and one scale for each 128 columns of exact low-bit values."""
    groups = x.reshape(x.shape[0], -1, 128)
    scale = np.abs(groups).max(axis=2)
    return np.sign(groups).astype(np.int64), scale.astype(np.float16)


def _trit_bytes(codes, per_byte, bits):
    """Codes >= 0 [..., n] packed with the first in the lowest bits."""
    lanes = codes.reshape(*codes.shape[:-1], -1, per_byte)
    return (lanes << (np.arange(per_byte) * bits)).sum(axis=-1).astype(np.uint8)


def _ptq1_0(trits):
    out = np.zeros((*trits.shape[:-1], 26), np.uint8)
    for at, first, step, count in ((0, 0, 16, 5), (16, 80, 8, 5), (24, 120, 2, 4)):
        for i in range(step):
            v = np.zeros(trits.shape[:-1], np.int64)
            for n in range(5):
                v = 3 * v + (trits[..., first + i + step * n] if n < count else 0)
            out[..., at + i] = (v * 256 + 242) // 243
    return out


def low_bit(x, kind):
    """Bytes of exact low-bit values as blocks of this type."""
    codes, scale = codes_and_scales(x)
    d = scale[..., None].view(np.uint8)
    if kind == "Q1_0":
        return np.concatenate([d, _trit_bytes((codes > 0).astype(np.int64), 8, 1)], axis=-1)
    trits = np.where(scale[..., None] == 0, 1, codes + 1)
    if kind == "PTQ1_0":
        return np.concatenate([_ptq1_0(trits), d], axis=-1)
    if kind == "PQ2_0":
        return np.concatenate([d, _trit_bytes(trits, 4, 2)], axis=-1)
    assert kind == "Q2_0"
    halves = _trit_bytes(trits, 4, 2).reshape(*trits.shape[:2], 2, 16)
    return np.concatenate([np.repeat(d[:, :, None], 2, axis=2), halves], axis=-1)


def q8_0(x):
    blocks = x.reshape(-1, 32)
    d = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
    safe = np.maximum(d.astype(np.float32), 1e-8)[:, None]
    q = np.rint(blocks / safe).clip(-127, 127).astype(np.int8)
    return np.concatenate([d[:, None].view(np.uint8), q.view(np.uint8)], axis=1)


def q4_0(x):
    blocks = x.reshape(-1, 32)
    d = (np.abs(blocks).max(axis=1) / 7).astype(np.float16)
    safe = np.maximum(d.astype(np.float32), 1e-8)[:, None]
    q = (np.rint(blocks / safe).clip(-8, 7) + 8).astype(np.uint8)
    return np.concatenate([d[:, None].view(np.uint8), q[:, :16] | (q[:, 16:] << 4)], axis=1)


def as_type(tensor, kind):
    """(kind, bytes, shape): the values in a type of GGUF."""
    shape = tensor[2]
    if tensor[0] == kind:
        return kind, tensor[1].tobytes(), shape
    x = values(tensor)
    if kind == "F32":
        return kind, x.tobytes(), shape
    if kind == "F16":
        return kind, x.astype(np.float16).tobytes(), shape
    if kind == "BF16":
        return kind, minimal.bf16(x).tobytes(), shape
    pack = {"Q8_0": q8_0, "Q4_0": q4_0}.get(kind) or (lambda v: low_bit(v, kind))
    return kind, np.ascontiguousarray(pack(x)).tobytes(), shape


def write_gguf(path, tensors, keys=(), ids=None):
    """tensors: name -> (kind, bytes, shape); `ids` gives a type another number."""
    records, data = [], b""
    for name, (kind, raw, shape) in tensors.items():
        number = (ids or {}).get(kind, TYPES[kind][0])
        dims = tuple(reversed(shape)) or (1,)
        records.append(record(name, dims, number, len(data)))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(gguf(keys, records, data))


def tokenizer_keys(tokenizer, template, rows):
    """The keys of llama.cpp for a tokenizer.json."""
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [5] * rows
    for text, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = text, 1
    for a in tokenizer["added_tokens"]:
        tokens[a["id"]], types[a["id"]] = a["content"], 3 if a["special"] else 4
    ids = {t: i for i, t in enumerate(tokens)}
    merges = [" ".join(m) for m in tokenizer["model"]["merges"]]

    def text(name, value):
        return key(name, STRING, scalar(STRING, value))

    def listed(name, kind, items):
        return key(name, 9, array(kind, items))

    return [
        text("general.architecture", "qwen3"),
        key("qwen3.rope.freq_base", F32, scalar(F32, 1e6)),
        key("qwen3.attention.layer_norm_rms_epsilon", F32, scalar(F32, 1e-6)),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "qwen2"),
        listed("tokenizer.ggml.tokens", STRING, tokens),
        listed("tokenizer.ggml.token_type", I32, types),
        listed("tokenizer.ggml.merges", STRING, merges),
        key("tokenizer.ggml.padding_token_id", U32, scalar(U32, ids["<|endoftext|>"])),
        key("tokenizer.ggml.eos_token_id", U32, scalar(U32, ids["<|im_end|>"])),
        text("tokenizer.chat_template", template),
    ]  # fmt: skip
