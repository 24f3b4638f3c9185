# SPDX-License-Identifier: Apache-2.0
"""--to sdcpp: three files for stable-diffusion.cpp and its kin, in types that mainline ggml has.

diffusion_model.gguf  names of BFL; binary linears Q1_0, ternary ones Q4_0 with codes 7, 8, 9,
                      which is exact and which every build reads
text_encoder.gguf     names and keys of llama.cpp, its tokenizer with it
vae.safetensors       names of latent diffusion
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from . import ggml_types as types
from . import gguf, names, stream
from .export import Written, idle_layer, low_bit_kind, new_folder, plain, write_safetensors
from .export_diffusers import by_part
from .gguf import TensorInfo
from .layout import Expected, Found
from .plan import Item
from .progress import Progress
from .safetensors import Files
from .tensor import Stacked

_LOW_BIT = {"binary": types.Q1_0, "ternary": types.Q4_0}


def _item(files: Files, found: Found, written: Written) -> Item:
    e, entry = found.expected, found.entry
    kind = low_bit_kind(files, found)
    if kind is not None:
        return Item(found, TensorInfo(e.target, e.shape, _LOW_BIT[kind]), "groups", True)
    if len(e.shape) == 1:  # ggml multiplies with vectors in float32 only
        return Item(found, TensorInfo(e.target, e.shape, types.F32), "values", True)
    stored, exact = entry.stored(files)
    if e.shape[-1] % stored.block:
        stored, exact = types.F16, False
    if not exact:
        written.round(entry, stored.name)
    how = "blocks" if stored.block > 1 else "values"
    return Item(found, TensorInfo(e.target, e.shape, stored), how, exact)


def _renamed(found: list[Found]) -> list[Found]:
    """The transformer under BFL names."""
    left = {f.expected.source: f for f in found}
    doubles, singles = (
        names.count(left, k) for k in ("transformer_blocks.", "single_transformer_blocks.")
    )
    result = []
    for rule in names.transformer_rules(doubles, singles):
        parts = [left[n] for n in rule.diffusers]
        entries = [f.entry for f in parts]
        rows = tuple((t, 0, t.rows) for t in entries)
        if rule.op == "swap":
            half = entries[0].rows // 2
            rows = ((entries[0], half, half), (entries[0], 0, half))
        entry = entries[0] if rule.op == "rename" else Stacked(entries[0].name, rows)
        expected = Expected(parts[0].expected.source, entry.shape, rule.bfl, parts[0].expected.role)
        result.append(Found(expected, entry))
    return result


def _write_gguf(
    files: Files, path: Path, items: list[Item], keys: dict[str, gguf.Value], progress: Progress
) -> None:
    def work(piece: stream.Piece) -> stream.Encoded:
        return stream.read_and_encode(files, piece)

    with gguf.Writer(path, keys, [i.info for i in items]) as writer:
        writer.start()
        with closing(stream.in_order(work, stream.pieces(items))) as results:
            for piece, encoded in results:
                writer.write(encoded.data)
                progress.advance(piece.target_bytes, piece.item.info.name)
                if piece.last:
                    writer.end_tensor()
        writer.commit()


def _text_keys(checkpoint, keys: dict[str, gguf.Value], layers: int) -> dict[str, gguf.Value]:
    e = checkpoint.pipeline.text
    about = {k: v for k, v in keys.items() if k.startswith(("general.name", "general.license"))}
    return about | {
        "general.architecture": gguf.string("qwen3"),
        "qwen3.context_length": gguf.u32(40960),
        "qwen3.embedding_length": gguf.u32(e.width),
        "qwen3.block_count": gguf.u32(layers),
        "qwen3.feed_forward_length": gguf.u32(e.ffn_width),
        "qwen3.attention.head_count": gguf.u32(e.heads),
        "qwen3.attention.head_count_kv": gguf.u32(e.kv_heads),
        "qwen3.attention.key_length": gguf.u32(e.head_dim),
        "qwen3.attention.value_length": gguf.u32(e.head_dim),
        "qwen3.attention.layer_norm_rms_epsilon": gguf.f32(e.norm_eps),
        "qwen3.rope.freq_base": gguf.f32(e.rope_theta),
        **{k: v for k, v in keys.items() if k.startswith("tokenizer.")},
    }


def _vae_outs(files: Files, found: list[Found], written: Written) -> list:
    outs = []
    for f in found:
        name, shape = names.vae_to_ldm(f.expected.source, 4), f.expected.shape
        if ".attn_1." in name and len(shape) == 2:
            shape = (*shape, 1, 1)
        outs.append(plain(files, f, name, written, shape))
    return outs


def write(files: Files, checkpoint, keys: dict[str, gguf.Value], folder: Path, written: Written):
    found = by_part(checkpoint.tensors)
    encoder = checkpoint.pipeline.text
    # stable-diffusion.cpp takes a Qwen3 of 28 layers for a smaller one with half the heads.
    idle = 0 if encoder.final_norm else 2 if encoder.layers + 1 == 28 else 1
    layers = found["text_encoder"] + idle_layer(checkpoint.pipeline, idle)
    text = [
        Found(Expected(f.expected.source, f.expected.shape, f.expected.target.removeprefix("te."),
                       f.expected.role), f.entry)
        for f in layers
    ]  # fmt: skip
    dit_items = [_item(files, f, written) for f in _renamed(found["transformer"])]
    text_items = [_item(files, f, written) for f in text]
    vae = _vae_outs(files, found["vae"], written)
    about = {k: v for k, v in keys.items() if k.startswith(("general.name", "general.license"))}
    dit_keys = {"general.architecture": gguf.string("flux"), **about}
    total = sum(i.info.nbytes for i in dit_items + text_items) + sum(o.nbytes for o in vae)
    with new_folder(folder, total) as temporary, Progress(total) as progress:
        _write_gguf(files, temporary / "diffusion_model.gguf", dit_items, dit_keys, progress)
        text_keys = _text_keys(checkpoint, keys, encoder.layers + idle)
        _write_gguf(files, temporary / "text_encoder.gguf", text_items, text_keys, progress)
        write_safetensors(temporary / "vae.safetensors", vae, progress)
    written.lines.append(
        "for stable-diffusion.cpp: --diffusion-model diffusion_model.gguf --llm text_encoder.gguf "
        "--vae vae.safetensors"
    )
