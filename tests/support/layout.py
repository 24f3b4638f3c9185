# SPDX-License-Identifier: Apache-2.0
"""Tensor names and shapes of a klein checkpoint, derived from the component configs."""

from __future__ import annotations

from collections.abc import Iterator

Named = Iterator[tuple[str, tuple[int, ...]]]


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """The linears that Bonsai stores in one bit or three values: 2-D and inside a block."""
    return len(shape) == 2 and name.startswith(
        ("transformer_blocks.", "single_transformer_blocks.")
    )


def transformer_tensors(config: dict) -> Named:
    """Names as diffusers' Flux2Transformer2DModel has them. No linear has a bias."""
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    mlp = int(width * config["mlp_ratio"])
    channels = config["in_channels"]
    time = "time_guidance_embed.timestep_embedder"
    yield f"{time}.linear_1.weight", (width, config["timestep_guidance_channels"])
    yield f"{time}.linear_2.weight", (width, width)
    yield "double_stream_modulation_img.linear.weight", (6 * width, width)
    yield "double_stream_modulation_txt.linear.weight", (6 * width, width)
    yield "single_stream_modulation.linear.weight", (3 * width, width)
    yield "x_embedder.weight", (width, channels)
    yield "context_embedder.weight", (width, config["joint_attention_dim"])
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield f"{block}.attn.{norm}.weight", (head,)
        for side in ("to_q", "to_k", "to_v", "to_out.0"):
            yield f"{block}.attn.{side}.weight", (width, width)
        for side in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield f"{block}.attn.{side}.weight", (width, width)
        for ff in ("ff", "ff_context"):
            yield f"{block}.{ff}.linear_in.weight", (2 * mlp, width)
            yield f"{block}.{ff}.linear_out.weight", (width, mlp)
    for i in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{i}.attn"
        yield f"{block}.norm_q.weight", (head,)
        yield f"{block}.norm_k.weight", (head,)
        yield f"{block}.to_qkv_mlp_proj.weight", (3 * width + 2 * mlp, width)
        yield f"{block}.to_out.weight", (width, width + mlp)
    yield "norm_out.linear.weight", (2 * width, width)
    yield "proj_out.weight", (channels, width)


def text_tensors(config: dict) -> Named:
    """Names as transformers' Qwen3ForCausalLM has them, embeddings tied (so no lm_head)."""
    width, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, width)
        yield f"{layer}.self_attn.k_proj.weight", (keys, width)
        yield f"{layer}.self_attn.v_proj.weight", (keys, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, queries)
        yield f"{layer}.self_attn.q_norm.weight", (head,)
        yield f"{layer}.self_attn.k_norm.weight", (head,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
        yield f"{layer}.mlp.gate_proj.weight", (ffn, width)
        yield f"{layer}.mlp.up_proj.weight", (ffn, width)
        yield f"{layer}.mlp.down_proj.weight", (width, ffn)
    yield "model.norm.weight", (width,)


def _affine(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _conv(name: str, source: int, target: int, size: int = 3) -> Named:
    yield f"{name}.weight", (target, source, size, size)
    yield f"{name}.bias", (target,)


def _resnet(name: str, source: int, target: int) -> Named:
    yield from _affine(f"{name}.norm1", source)
    yield from _conv(f"{name}.conv1", source, target)
    yield from _affine(f"{name}.norm2", target)
    yield from _conv(f"{name}.conv2", target, target)
    if source != target:
        yield from _conv(f"{name}.conv_shortcut", source, target, 1)


def _mid_block(name: str, width: int) -> Named:
    yield from _resnet(f"{name}.resnets.0", width, width)
    yield from _affine(f"{name}.attentions.0.group_norm", width)
    for linear in ("to_q", "to_k", "to_v", "to_out.0"):
        yield f"{name}.attentions.0.{linear}.weight", (width, width)
        yield f"{name}.attentions.0.{linear}.bias", (width,)
    yield from _resnet(f"{name}.resnets.1", width, width)


def _vae_encoder(config: dict) -> Named:
    widths = config["block_out_channels"]
    yield from _conv("encoder.conv_in", config["in_channels"], widths[0])
    source = widths[0]
    for i, target in enumerate(widths):
        block = f"encoder.down_blocks.{i}"
        for j in range(config["layers_per_block"]):
            yield from _resnet(f"{block}.resnets.{j}", source, target)
            source = target
        if i + 1 < len(widths):
            yield from _conv(f"{block}.downsamplers.0.conv", target, target)
    yield from _mid_block("encoder.mid_block", source)
    yield from _affine("encoder.conv_norm_out", source)
    yield from _conv("encoder.conv_out", source, 2 * config["latent_channels"])


def _vae_decoder(config: dict) -> Named:
    widths = config.get("decoder_block_out_channels") or config["block_out_channels"]
    widths = widths[::-1]
    yield from _conv("decoder.conv_in", config["latent_channels"], widths[0])
    yield from _mid_block("decoder.mid_block", widths[0])
    source = widths[0]
    for i, target in enumerate(widths):
        block = f"decoder.up_blocks.{i}"
        for j in range(config["layers_per_block"] + 1):
            yield from _resnet(f"{block}.resnets.{j}", source, target)
            source = target
        if i + 1 < len(widths):
            yield from _conv(f"{block}.upsamplers.0.conv", target, target)
    yield from _affine("decoder.conv_norm_out", source)
    yield from _conv("decoder.conv_out", source, config["out_channels"])


def vae_tensors(config: dict) -> Named:
    """Names as diffusers' AutoencoderKLFlux2 has them, latent statistics included."""
    latent = config["latent_channels"]
    yield from _vae_encoder(config)
    yield from _vae_decoder(config)
    yield from _conv("quant_conv", 2 * latent, 2 * latent, 1)
    yield from _conv("post_quant_conv", latent, latent, 1)
    packed = latent * config["patch_size"][0] * config["patch_size"][1]
    yield "bn.running_mean", (packed,)
    yield "bn.running_var", (packed,)
    yield "bn.num_batches_tracked", ()
