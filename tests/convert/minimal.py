# SPDX-License-Identifier: Apache-2.0
"""The smallest checkpoint directory that has every part: one block of each kind, two text layers.

Written by plain code of its own, so that the converter's idea of names and shapes is checked
against a second one.
"""

import json
import struct
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, FFN, VOCAB, Z = 128, 128, 64, 320, 8
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
         ("<think>", False), ("</think>", False)]  # fmt: skip
TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] "
    "+ '<|im_end|>\\n' }}{%- endfor -%}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)


def bf16(x):
    """float array -> bfloat16 bit patterns by truncation (any valid pattern will do here)."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    """tensors: name -> (dtype name, array whose bytes are stored, shape)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, data, shape) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape)}
        header[name]["data_offsets"] = [offset, offset + data.nbytes]
        offset += data.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, data, _ in tensors.values():
            f.write(np.ascontiguousarray(data).tobytes())


def read_safetensors(path):
    """The inverse of write_safetensors, with writable byte arrays."""
    raw = Path(path).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, e in header.items():
        begin, end = e["data_offsets"]
        data = np.frombuffer(raw, np.uint8, end - begin, 8 + length + begin).copy()
        tensors[name] = (e["dtype"], data, tuple(e["shape"]))
    return tensors


def low_bit(rng, rows, k, kind):
    """float16 [rows, k]: one scale a group; ternary has an all-zero group and negative zeros."""
    low = -1 if kind == "ternary" else 0
    code = rng.integers(low, 2, (rows, k // 128, 128)).astype(np.float16)
    if kind == "binary":
        code = code * 2 - 1
    else:
        code[1, 0] = 0
        code[code == 0] *= np.where(rng.random(int((code == 0).sum())) < 0.3, -1, 1)
    scale = (0.01 + 0.03 * rng.random((rows, k // 128, 1))).astype(np.float16)
    return (code * scale).reshape(rows, k)


def transformer(kind, rng):
    c, mlp = WIDTH, 3 * WIDTH
    tensors = {}

    def add(name, *shape):
        if kind != "dense" and len(shape) == 2 and "transformer_blocks" in name:
            data = low_bit(rng, *shape, kind)
        else:
            data = (rng.standard_normal(shape) * 0.05).astype(np.float16)
        if kind == "dense":
            tensors[name + ".weight"] = ("BF16", bf16(data), shape)
        else:
            tensors[name + ".weight"] = ("F16", data, shape)

    add("x_embedder", c, 4 * Z)
    add("context_embedder", c, 2 * HIDDEN)
    add("time_guidance_embed.timestep_embedder.linear_1", c, 256)
    add("time_guidance_embed.timestep_embedder.linear_2", c, c)
    add("double_stream_modulation_img.linear", 6 * c, c)
    add("double_stream_modulation_txt.linear", 6 * c, c)
    add("single_stream_modulation.linear", 3 * c, c)
    a = "transformer_blocks.0.attn."
    for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"):
        add(a + n, c, c)
    add(a + "to_add_out", c, c)
    for n in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        add(a + n, 128)
    for n in ("ff", "ff_context"):
        add(f"transformer_blocks.0.{n}.linear_in", 2 * mlp, c)
        add(f"transformer_blocks.0.{n}.linear_out", c, mlp)
    a = "single_transformer_blocks.0.attn."
    add(a + "to_qkv_mlp_proj", 3 * c + 2 * mlp, c)
    add(a + "to_out", c, c + mlp)
    add(a + "norm_q", 128)
    add(a + "norm_k", 128)
    add("norm_out.linear", 2 * c, c)
    add("proj_out", 4 * Z, c)
    return tensors


def text_encoder(rng, layers=3):
    tensors = {}

    def add(name, *shape):
        data = bf16(rng.standard_normal(shape) * 0.1 + (len(shape) == 1))
        tensors[f"model.{name}.weight"] = ("BF16", data, shape)

    add("embed_tokens", VOCAB, HIDDEN)
    for i in range(layers):  # the last is never read
        p = f"layers.{i}."
        add(p + "self_attn.q_proj", 128, HIDDEN)
        add(p + "self_attn.k_proj", 64, HIDDEN)
        add(p + "self_attn.v_proj", 64, HIDDEN)
        add(p + "self_attn.o_proj", HIDDEN, 128)
        add(p + "self_attn.q_norm", 64)
        add(p + "self_attn.k_norm", 64)
        add(p + "mlp.gate_proj", FFN, HIDDEN)
        add(p + "mlp.up_proj", FFN, HIDDEN)
        add(p + "mlp.down_proj", HIDDEN, FFN)
        add(p + "input_layernorm", HIDDEN)
        add(p + "post_attention_layernorm", HIDDEN)
    add("norm", HIDDEN)
    return tensors


def vae(rng):
    w = [32, 64, 64, 64]
    tensors = {}

    def add(name, *shape):
        data = bf16(rng.standard_normal(shape) * 0.1)
        tensors[name] = ("BF16", data, shape)

    def pair(name, out, *rest):
        add(name + ".weight", out, *rest)
        add(name + ".bias", out)

    def resnet(name, inp, out):
        pair(name + ".norm1", inp)
        pair(name + ".conv1", out, inp, 3, 3)
        pair(name + ".norm2", out)
        pair(name + ".conv2", out, out, 3, 3)
        if inp != out:
            pair(name + ".conv_shortcut", out, inp, 1, 1)

    def mid(name):
        resnet(name + ".resnets.0", 64, 64)
        pair(name + ".attentions.0.group_norm", 64)
        for n in ("to_q", "to_k", "to_v", "to_out.0"):
            pair(f"{name}.attentions.0.{n}", 64, 64)
        resnet(name + ".resnets.1", 64, 64)

    pair("encoder.conv_in", 32, 3, 3, 3)
    for i, (inp, out) in enumerate([(32, 32), (32, 64), (64, 64), (64, 64)]):
        resnet(f"encoder.down_blocks.{i}.resnets.0", inp, out)
        if i < 3:
            pair(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out, 3, 3)
    mid("encoder.mid_block")
    pair("encoder.conv_norm_out", 64)
    pair("encoder.conv_out", 2 * Z, 64, 3, 3)
    pair("quant_conv", 2 * Z, 2 * Z, 1, 1)
    pair("post_quant_conv", Z, Z, 1, 1)
    pair("decoder.conv_in", 64, Z, 3, 3)
    mid("decoder.mid_block")
    for i, (inp, out) in enumerate([(64, 64), (64, 64), (64, 64), (64, 32)]):
        resnet(f"decoder.up_blocks.{i}.resnets.0", inp, out)
        resnet(f"decoder.up_blocks.{i}.resnets.1", out, out)
        if i < 3:
            pair(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out, 3, 3)
    pair("decoder.conv_norm_out", w[0])
    pair("decoder.conv_out", 3, w[0], 3, 3)
    for n in ("running_mean", "running_var"):
        tensors[f"bn.{n}"] = ("F32", np.abs(rng.standard_normal(4 * Z, np.float32)), (4 * Z,))
    tensors["bn.num_batches_tracked"] = ("I64", np.zeros((), np.int64), ())
    return tensors


def byte_level_alphabet():
    """GPT-2's bytes to printable characters."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(other))]


def tokenizer():
    vocab = {c: i for i, c in enumerate(byte_level_alphabet())}
    merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"]]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + i, "content": t, "special": s, **flags}
        for i, (t, s) in enumerate(ADDED)
    ]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": merges},
    }


SETTINGS = {
    "model_index.json": {
        "_class_name": "Flux2KleinPipeline", "is_distilled": True,
        "text_encoder_out_layers": [1, 2],
    },
    "transformer/config.json": {
        "_class_name": "Flux2Transformer2DModel", "in_channels": 4 * Z, "out_channels": None,
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128,
        "num_attention_heads": 1, "joint_attention_dim": 2 * HIDDEN, "mlp_ratio": 3.0,
        "axes_dims_rope": [32, 32, 32, 32], "rope_theta": 2000, "eps": 1e-6, "patch_size": 1,
        "guidance_embeds": False, "timestep_guidance_channels": 256, "musubi_blocks_to_swap": 3,
    },
    "text_encoder/config.json": {
        "model_type": "qwen3", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 64, "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKLFlux2", "act_fn": "silu", "latent_channels": Z,
        "block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "norm_num_groups": 8,
        "batch_norm_eps": 1e-4, "patch_size": [2, 2], "in_channels": 3, "out_channels": 3,
        "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0,
        "use_dynamic_shifting": True, "time_shift_type": "exponential",
        "num_train_timesteps": 1000, "use_karras_sigmas": False, "shift_terminal": None,
    },
    "tokenizer/tokenizer_config.json": {
        "pad_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"},
        "chat_template": TEMPLATE,
    },
}  # fmt: skip

WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def write_checkpoint(root, kind, seed=0):
    rng = np.random.default_rng(seed)
    for name, settings in SETTINGS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(settings))
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer()))
    for part, tensors in (
        ("transformer", transformer(kind, rng)),
        ("text_encoder", text_encoder(rng)),
        ("vae", vae(rng)),
    ):
        write_safetensors(root / WEIGHTS[part], tensors)


def edit_json(path, **changes):
    """Change keys of a JSON file; a value of `...` removes the key."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def edit_tensors(path, change):
    """Let `change` modify the tensors (name -> [dtype, bytes, shape]) of a file."""
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors)


def edit_weights(root, part, change):
    """The same for one component of a checkpoint."""
    edit_tensors(root / WEIGHTS[part], change)
