# SPDX-License-Identifier: Apache-2.0
"""Names of the same tensors in the programs that share these checkpoints, both ways.

diffusers names the transformer and the VAE of the model file, transformers the text encoder. The
others: BFL's (also ComfyUI's and stable-diffusion.cpp's) with q, k, v stacked to one matrix and the
final modulation as (shift, scale) where diffusers has (scale, shift); the latent-diffusion names of
the VAE with its decoder levels in the other direction; llama.cpp's for the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One BFL tensor and what it is in diffusers: 'rename', 'stack' of rows, or 'swap' of the two
    halves of the rows."""

    bfl: str
    diffusers: tuple[str, ...]
    op: str = "rename"


_OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
}
_STREAMS = (
    ("img", ("to_q", "to_k", "to_v"), "to_out.0", "norm_q", "norm_k", "ff"),
    ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_q",
     "norm_added_k", "ff_context"),
)  # fmt: skip


def transformer_rules(doubles: int, singles: int) -> Iterator[Rule]:
    for bfl, diffusers in _OUTER.items():
        yield Rule(f"{bfl}.weight", (f"{diffusers}.weight",))
    yield Rule("final_layer.adaLN_modulation.1.weight", ("norm_out.linear.weight",), "swap")
    for i in range(doubles):
        there, here = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, qkv, out, norm_q, norm_k, ff in _STREAMS:
            a = f"{there}.{stream}_attn"
            stacked = tuple(f"{here}.attn.{n}.weight" for n in qkv)
            yield Rule(f"{a}.qkv.weight", stacked, "stack")
            yield Rule(f"{a}.proj.weight", (f"{here}.attn.{out}.weight",))
            yield Rule(f"{a}.norm.query_norm.scale", (f"{here}.attn.{norm_q}.weight",))
            yield Rule(f"{a}.norm.key_norm.scale", (f"{here}.attn.{norm_k}.weight",))
            yield Rule(f"{there}.{stream}_mlp.0.weight", (f"{here}.{ff}.linear_in.weight",))
            yield Rule(f"{there}.{stream}_mlp.2.weight", (f"{here}.{ff}.linear_out.weight",))
    for i in range(singles):
        there, here = f"single_blocks.{i}", f"single_transformer_blocks.{i}.attn"
        yield Rule(f"{there}.linear1.weight", (f"{here}.to_qkv_mlp_proj.weight",))
        yield Rule(f"{there}.linear2.weight", (f"{here}.to_out.weight",))
        yield Rule(f"{there}.norm.query_norm.scale", (f"{here}.norm_q.weight",))
        yield Rule(f"{there}.norm.key_norm.scale", (f"{here}.norm_k.weight",))


def count(names: Iterable[str], start: str) -> int:
    """Blocks called START0., START1., ...: one more than the largest number."""
    pattern = re.compile(re.escape(start) + r"(\d{1,4})\.")
    return max((int(m[1]) + 1 for n in names if (m := pattern.match(n))), default=0)


# Both ways around: (diffusers, latent diffusion), the level's number treated apart.
_VAE = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
    ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
    ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ("conv_norm_out.", "norm_out."),
    ("conv_in.", "conv_in."),
    ("conv_out.", "conv_out."),
)
_FROM_LDM = re.compile(r"(encoder\.down|decoder\.up)\.(\d{1,2})\.(block\.(\d{1,2})|\w+)\.(.*)")
_TO_LDM = re.compile(
    r"(encoder\.down|decoder\.up)_blocks\.(\d{1,2})\."
    r"(resnets\.(\d{1,2})|(?:down|up)samplers\.0)\.(.*)"
)


def vae_from_ldm(name: str, levels: int) -> str | None:
    """The diffusers name; None where this is no name of latent diffusion."""
    for theirs, ours in (("encoder.quant_conv.", "quant_conv."),
                         ("decoder.post_quant_conv.", "post_quant_conv.")):  # fmt: skip
        if name.startswith((theirs, ours)):
            return ours + name.removeprefix(theirs).removeprefix(ours)
    if name.startswith("bn."):
        return name
    if m := _FROM_LDM.match(name):
        side, number, block, resnet, rest = m[1], int(m[2]), m[3], m[4], m[5]
        if side == "decoder.up":
            number = levels - 1 - number
        if resnet is not None:
            rest = f"resnets.{resnet}.{rest.replace('nin_shortcut', 'conv_shortcut')}"
        elif block in ("downsample", "upsample"):
            rest = f"{block}rs.0.{rest}"
        else:
            return None
        return f"{side}_blocks.{number}.{rest}" if number >= 0 else None
    side, dot, rest = name.partition(".")
    for ours, theirs in _VAE:
        if dot and side in ("encoder", "decoder") and rest.startswith(theirs):
            return f"{side}.{ours}{rest.removeprefix(theirs)}"
    return None


def vae_to_ldm(name: str, levels: int) -> str:
    """The inverse, in the form that ComfyUI and stable-diffusion.cpp read."""
    if m := _TO_LDM.match(name):
        side, number, block, resnet, rest = m[1], int(m[2]), m[3], m[4], m[5]
        if side == "decoder.up":
            number = levels - 1 - number
        if resnet is not None:
            return f"{side}.{number}.block.{resnet}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{side}.{number}.{block.removesuffix('rs.0')}.{rest}"
    side, _, rest = name.partition(".")
    for ours, theirs in _VAE:
        if side in ("encoder", "decoder") and rest.startswith(ours):
            return f"{side}.{theirs}{rest.removeprefix(ours)}"
    return name


_TEXT_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TEXT_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def text_from_llama(name: str) -> str | None:
    """The transformers name of a llama.cpp one."""
    if m := re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.weight", name):
        inner = _TEXT_BLOCK.get(m[2])
        return inner and f"model.layers.{m[1]}.{inner}.weight"
    return _TEXT_OUTER.get(name)
