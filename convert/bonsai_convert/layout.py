# SPDX-License-Identifier: Apache-2.0
"""Which tensors a checkpoint must hold, derived from its settings, and what they become.

The settings come first: a list of expected names and shapes is made from them and the files must
match it exactly, so a config that contradicts the weights is found before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import Pipeline, TextEncoder, Transformer, Vae
from .errors import ConvertError
from .floats import RAW_DTYPE
from .parts import Part
from .tensor import Tensor


@dataclass(frozen=True)
class Expected:
    """A tensor of the source and its place in the model file."""

    source: str  # name in the source component
    shape: tuple[int, ...]
    target: str  # name in the model file
    role: str  # 'block', 'aux', 'text', 'vae' (matrices and convolutions), 'vector' (1-D)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Convolutions [Cout, Cin, h, w] are stored [Cout, h, w, Cin]; 1x1 ones as matrices."""
        if len(self.shape) != 4:
            return self.shape
        out, inp, h, w = self.shape
        return (out, inp) if h == w == 1 else (out, h, w, inp)


@dataclass(frozen=True)
class Found:
    """An expected tensor with what the source has for it."""

    expected: Expected
    entry: Tensor


def transformer_tensors(t: Transformer) -> Iterator[Expected]:
    c, mlp = t.width, t.mlp_width

    def tensor(name: str, *shape: int, role: str = "aux") -> Expected:
        return Expected(f"{name}.weight", shape, f"dit.{name}.weight", role)

    def norms(prefix: str, *names: str) -> Iterator[Expected]:
        for n in names:
            yield tensor(f"{prefix}.{n}", t.head_dim, role="vector")

    yield tensor("time_guidance_embed.timestep_embedder.linear_1", c, t.time_channels)
    yield tensor("time_guidance_embed.timestep_embedder.linear_2", c, c)
    yield tensor("double_stream_modulation_img.linear", 6 * c, c)
    yield tensor("double_stream_modulation_txt.linear", 6 * c, c)
    yield tensor("single_stream_modulation.linear", 3 * c, c)
    yield tensor("x_embedder", c, t.in_channels)
    yield tensor("context_embedder", c, t.context_width)
    for i in range(t.double_blocks):
        a = f"transformer_blocks.{i}.attn"
        yield from norms(a, "norm_q", "norm_k", "norm_added_q", "norm_added_k")
        for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"):
            yield tensor(f"{a}.{n}", c, c, role="block")
        yield tensor(f"{a}.to_add_out", c, c, role="block")
        for ff in ("ff", "ff_context"):
            yield tensor(f"transformer_blocks.{i}.{ff}.linear_in", 2 * mlp, c, role="block")
            yield tensor(f"transformer_blocks.{i}.{ff}.linear_out", c, mlp, role="block")
    for i in range(t.single_blocks):
        a = f"single_transformer_blocks.{i}.attn"
        yield from norms(a, "norm_q", "norm_k")
        yield tensor(f"{a}.to_qkv_mlp_proj", 3 * c + 2 * mlp, c, role="block")
        yield tensor(f"{a}.to_out", c, c + mlp, role="block")
    yield tensor("norm_out.linear", 2 * c, c)
    yield tensor("proj_out", t.in_channels, c)


def text_tensors(e: TextEncoder, prefix: str) -> Iterator[Expected]:
    """`prefix` is 'model.', or '' where the bare encoder was saved without its head."""
    q, kv = e.heads * e.head_dim, e.kv_heads * e.head_dim

    def tensor(source: str, target: str, *shape: int) -> Expected:
        role = "vector" if len(shape) == 1 else "text"
        return Expected(f"{prefix}{source}.weight", shape, f"te.{target}.weight", role)

    yield tensor("embed_tokens", "token_embd", e.vocab_size, e.width)
    for i in range(e.layers):
        s, t = f"layers.{i}", f"blk.{i}"
        yield tensor(f"{s}.input_layernorm", f"{t}.attn_norm", e.width)
        yield tensor(f"{s}.self_attn.q_proj", f"{t}.attn_q", q, e.width)
        yield tensor(f"{s}.self_attn.k_proj", f"{t}.attn_k", kv, e.width)
        yield tensor(f"{s}.self_attn.v_proj", f"{t}.attn_v", kv, e.width)
        yield tensor(f"{s}.self_attn.q_norm", f"{t}.attn_q_norm", e.head_dim)
        yield tensor(f"{s}.self_attn.k_norm", f"{t}.attn_k_norm", e.head_dim)
        yield tensor(f"{s}.self_attn.o_proj", f"{t}.attn_output", e.width, q)
        yield tensor(f"{s}.post_attention_layernorm", f"{t}.ffn_norm", e.width)
        yield tensor(f"{s}.mlp.gate_proj", f"{t}.ffn_gate", e.ffn_width, e.width)
        yield tensor(f"{s}.mlp.up_proj", f"{t}.ffn_up", e.ffn_width, e.width)
        yield tensor(f"{s}.mlp.down_proj", f"{t}.ffn_down", e.width, e.ffn_width)
    if e.final_norm:
        yield tensor("norm", "output_norm", e.width)


def vae_tensors(v: Vae, with_encoder: bool) -> Iterator[Expected]:
    def tensor(name: str, *shape: int) -> Expected:
        role = "vector" if len(shape) == 1 else "vae"
        return Expected(name, shape, f"vae.{name}", role)

    def norm(name: str, c: int) -> Iterator[Expected]:
        yield tensor(f"{name}.weight", c)
        yield tensor(f"{name}.bias", c)

    def conv(name: str, out: int, inp: int, size: int = 3) -> Iterator[Expected]:
        yield tensor(f"{name}.weight", out, inp, size, size)
        yield tensor(f"{name}.bias", out)

    def resnet(name: str, inp: int, out: int) -> Iterator[Expected]:
        yield from norm(f"{name}.norm1", inp)
        yield from conv(f"{name}.conv1", out, inp)
        yield from norm(f"{name}.norm2", out)
        yield from conv(f"{name}.conv2", out, out)
        if inp != out:
            yield from conv(f"{name}.conv_shortcut", out, inp, 1)

    def mid(name: str, c: int) -> Iterator[Expected]:
        yield from resnet(f"{name}.resnets.0", c, c)
        if v.mid_attention:
            a = f"{name}.attentions.0"
            yield from norm(f"{a}.group_norm", c)
            for n in ("to_q", "to_k", "to_v", "to_out.0"):
                yield tensor(f"{a}.{n}.weight", c, c)
                yield tensor(f"{a}.{n}.bias", c)
        yield from resnet(f"{name}.resnets.1", c, c)

    z = v.latent_channels
    yield tensor("bn.running_mean", 4 * z)
    yield tensor("bn.running_var", 4 * z)
    yield from conv("post_quant_conv", z, z, 1)
    widths = v.decoder_widths[::-1]
    yield from conv("decoder.conv_in", widths[0], z)
    yield from mid("decoder.mid_block", widths[0])
    inp = widths[0]
    for i, out in enumerate(widths):
        for j in range(v.layers_per_block + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", out if j else inp, out)
        if i + 1 < len(widths):
            yield from conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out)
        inp = out
    yield from norm("decoder.conv_norm_out", inp)
    yield from conv("decoder.conv_out", 3, inp)
    if with_encoder:
        yield from _encoder_tensors(v, norm, conv, resnet, mid)


def _encoder_tensors(v: Vae, norm, conv, resnet, mid) -> Iterator[Expected]:
    inp = v.encoder_widths[0]
    yield from conv("encoder.conv_in", inp, 3)
    for i, out in enumerate(v.encoder_widths):
        for j in range(v.layers_per_block):
            yield from resnet(f"encoder.down_blocks.{i}.resnets.{j}", out if j else inp, out)
        if i + 1 < len(v.encoder_widths):
            yield from conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out)
        inp = out
    yield from mid("encoder.mid_block", inp)
    yield from norm("encoder.conv_norm_out", inp)
    yield from conv("encoder.conv_out", 2 * v.latent_channels, inp)
    yield from conv("quant_conv", 2 * v.latent_channels, 2 * v.latent_channels, 1)


def _dropped_text(name: str, layers: int) -> bool:
    """Layers after the last one read, the head, and rotary tables of old files."""
    m = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
    if m and int(m[1]) >= layers:
        return True
    return name in ("lm_head.weight", "model.norm.weight", "norm.weight") or name.endswith(
        "rotary_emb.inv_freq"
    )


def _dropped_vae(name: str, with_encoder: bool) -> bool:
    """The step counter of the batch norm, and the encoder when it is not wanted."""
    if name == "bn.num_batches_tracked":
        return True
    return not with_encoder and name.startswith(("encoder.", "quant_conv."))


def match(
    folder: Path,
    expected: Iterator[Expected],
    entries: dict[str, Tensor],
    dropped: Callable[[str], bool],
) -> list[Found]:
    """Pair the expected tensors with those of the files.

    Any difference is an error, except tensors that the pipeline never uses (`dropped`).
    """
    wanted = list(expected)
    missing = [e for e in wanted if e.source not in entries]
    if missing:
        first = missing[0]
        raise ConvertError(
            f"{folder}: {len(missing)} of {len(wanted)} tensors missing, first '{first.source}' "
            f"{list(first.shape)}; config.json does not fit these weights, or the download is "
            "incomplete"
        )
    found = []
    for e in wanted:
        entry = entries[e.source]
        where = f"{entry.path}: tensor '{e.source}'"
        if entry.dtype not in RAW_DTYPE:
            raise ConvertError(
                f"{where}: expected {', '.join(RAW_DTYPE)}, found {entry.dtype}; this packing is "
                "not known: convert the unpacked checkpoint"
            )
        if entry.shape != e.shape:
            raise ConvertError(
                f"{where}: expected shape {list(e.shape)} from config.json, found "
                f"{list(entry.shape)}; config and weights are from different models"
            )
        found.append(Found(e, entry))
    names = {e.source for e in wanted}
    for name, entry in entries.items():
        if name not in names and not dropped(name):
            raise ConvertError(
                f"{entry.path}: unknown tensor '{name}' {list(entry.shape)}; config.json does not "
                "describe these weights, and leaving it out would change the pictures"
            )
    return found


def text_prefix(entries: dict[str, Tensor]) -> str:
    return "" if "embed_tokens.weight" in entries else "model."


def has_encoder(entries: dict[str, Tensor]) -> bool:
    return any(name.startswith("encoder.") for name in entries)


def all_tensors(p: Pipeline, parts: dict[str, Part], with_encoder: bool) -> list[Found]:
    """Every tensor to store, in file order: encoder, transformer, VAE (the order of use)."""
    text, dit, vae = (parts[k] for k in ("text_encoder", "transformer", "vae"))
    return [
        *match(
            text.where,
            text_tensors(p.text, text_prefix(text.tensors)),
            text.tensors,
            lambda name: _dropped_text(name, p.text.layers),
        ),
        *match(dit.where, transformer_tensors(p.transformer), dit.tensors, lambda name: False),
        *match(
            vae.where,
            vae_tensors(p.vae, with_encoder),
            vae.tensors,
            lambda name: _dropped_vae(name, with_encoder),
        ),
    ]
