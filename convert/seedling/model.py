# SPDX-License-Identifier: Apache-2.0
"""Networks of the seedling: the classes of FLUX.2 klein in small sizes, block linears ternary,
binary or dense, and the 4-step sampler."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from .tokenizer import MAX_TOKENS, VOCAB

GROUP = 128
VARIANTS = ("ternary", "binary", "dense")
OUT_LAYERS = (2, 3, 4)  # hidden_states read by the transformer; the last is after the final norm
SHIFT = 3.0  # static timestep shift, declared in scheduler_config.json
STEPS = 4
SIZE = 256

DIT_CONFIG = dict(
    patch_size=1,
    in_channels=128,
    out_channels=None,
    num_layers=2,
    num_single_layers=8,
    attention_head_dim=128,
    num_attention_heads=3,
    joint_attention_dim=768,
    timestep_guidance_channels=256,
    mlp_ratio=3.0,
    axes_dims_rope=(32, 32, 32, 32),
    rope_theta=2000,
    eps=1e-6,
    guidance_embeds=False,
)
TEXT_CONFIG = dict(
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rms_norm_eps=1e-6,
    rope_theta=1000000,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
    attention_bias=False,
    hidden_act="silu",
    use_sliding_window=False,
)
VAE_CONFIG = dict(
    block_out_channels=(32, 48, 96, 128),
    layers_per_block=1,
    latent_channels=32,
    norm_num_groups=16,
    mid_block_add_attention=True,
    sample_size=256,
)
TOY = dict(  # for rehearsals on a small CPU: same classes, hardly any width
    dit=dict(num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=384),
    text=dict(hidden_size=128, intermediate_size=128, num_attention_heads=2),
    vae=dict(block_out_channels=(16, 16, 16, 16)),
)


class LowBitLinear(nn.Linear):
    """Linear whose weight is quantised on the fly; gradients pass straight through.

    Groups of 128 along the input axis: w = s * {-1, 0, 1} with s = mean |w| (BitNet b1.58) or
    w = s * {-1, 1}.
    """

    variant = "ternary"

    def forward(self, x):
        w = self.weight
        return F.linear(x, w + (quantise(w, self.variant) - w).detach(), self.bias)


def quantise(weight, variant, scale_dtype=torch.float32):
    """`weight` rounded to its low-bit values, in the weight's dtype."""
    g = weight.view(weight.shape[0], -1, GROUP)
    s = g.abs().mean(-1, keepdim=True).clamp(min=1e-6).to(scale_dtype).to(g.dtype)
    q = (g / s).round().clamp(-1, 1) if variant == "ternary" else torch.where(g < 0, -1.0, 1.0)
    return (q * s).view_as(weight)


def is_block_linear(name):
    """True for the weights that the low-bit variants quantise (100 of them in the real klein)."""
    return "transformer_blocks." in name and name.endswith(".weight") and ".norm_" not in name


def build_vae(toy=False):
    return AutoencoderKLFlux2(**{**VAE_CONFIG, **(TOY["vae"] if toy else {})})


def build_dit(variant, toy=False):
    dit = Flux2Transformer2DModel(**{**DIT_CONFIG, **(TOY["dit"] if toy else {})})
    if variant != "dense":
        for name, module in dit.named_modules():
            if isinstance(module, nn.Linear) and is_block_linear(name + ".weight"):
                module.__class__ = LowBitLinear
                module.variant = variant
    return dit


def build_text_encoder(toy=False):
    return Qwen3Model(Qwen3Config(**{**TEXT_CONFIG, **(TOY["text"] if toy else {})}))


def patchify(z):
    """[B, 32, 2h, 2w] -> [B, h*w, 128]; channel 4*c + 2*dy + dx."""
    b, c, h, w = z.shape
    z = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(b, h * w // 4, c * 4)


def unpatchify(x, h, w):
    """Inverse of patchify; h, w count tokens."""
    b, _, c = x.shape
    x = x.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, c // 4, h * 2, w * 2)


class Latents:
    """The VAE as the transformer sees it: normalised tokens in, pictures in -1..1 out."""

    def __init__(self, vae):
        self.vae = vae
        self.mean = vae.bn.running_mean
        self.std = (vae.bn.running_var + vae.bn.eps).sqrt()

    def encode(self, x):
        z = self.vae.encode(x).latent_dist.mode()
        return (patchify(z.float()) - self.mean) / self.std

    def decode(self, tokens, h, w):
        return self.vae.decode(unpatchify(tokens * self.std + self.mean, h, w)).sample


class TextToVelocity(nn.Module):
    """Text encoder and transformer as one trainable module."""

    def __init__(self, variant, toy=False):
        super().__init__()
        self.text = build_text_encoder(toy)
        self.dit = build_dit(variant, toy)

    def context(self, ids, lengths):
        """[B, MAX_TOKENS, 3 * width]. Pads are masked as keys only: their rows condition too."""
        row = torch.arange(MAX_TOKENS, device=ids.device)
        mask = (row[None] <= row[:, None]) & (row < lengths[:, None, None, None])
        text, hidden = self.text, []
        x = text.embed_tokens(ids)
        cos, sin = (t[:, None] for t in text.rotary_emb(x, row[None]))
        for layer in text.layers:
            x = x + self._attend(layer.self_attn, layer.input_layernorm(x), mask, cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            hidden.append(x)
        hidden[-1] = text.norm(x)
        return torch.cat([hidden[k - 1] for k in OUT_LAYERS], -1)

    @staticmethod
    def _attend(attn, x, mask, cos, sin):
        """Qwen3's grouped attention, written out so that it compiles to one graph."""
        b, n, _ = x.shape
        q = attn.q_norm(attn.q_proj(x).view(b, n, -1, attn.head_dim)).transpose(1, 2)
        k = attn.k_norm(attn.k_proj(x).view(b, n, -1, attn.head_dim)).transpose(1, 2)
        v = attn.v_proj(x).view(b, n, -1, attn.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(attn.num_key_value_groups, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return attn.o_proj(y.transpose(1, 2).flatten(2))

    def velocity(self, x, sigma, context, h, w):
        """x [B, h*w, 128] at noise level sigma [B] in 0..1."""
        return self.dit(
            hidden_states=x,
            encoder_hidden_states=context,
            timestep=sigma,
            img_ids=image_ids(h, w, x.device),
            txt_ids=text_ids(x.device),
            guidance=None,
            return_dict=False,
        )[0]


def rotate(x, cos, sin):
    """Half-split rotary embedding."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def image_ids(h, w, device):
    """Position ids (t, y, x, l) of the picture tokens."""
    ids = torch.zeros(h, w, 4, device=device)
    ids[..., 1] = torch.arange(h, device=device)[:, None]
    ids[..., 2] = torch.arange(w, device=device)[None]
    return ids.view(1, h * w, 4)


def text_ids(device):
    ids = torch.zeros(1, MAX_TOKENS, 4, device=device)
    ids[0, :, 3] = torch.arange(MAX_TOKENS, device=device)
    return ids


def shifted(s):
    return SHIFT * s / (1 + (SHIFT - 1) * s)


def schedule(steps=STEPS):
    """Noise levels of the sampler, 0 appended."""
    return [shifted(1 - k / steps) for k in range(steps)] + [0.0]


@torch.no_grad()
def sample(model, context, noise, h, w, steps=STEPS, stop=None):
    """Euler steps from noise [B, h*w, 128]; `stop` ends early, at that step's noise level."""
    x, sigmas = noise, schedule(steps)
    for k in range(steps if stop is None else stop):
        s = torch.full((len(x),), sigmas[k], device=x.device)
        x = x + (sigmas[k + 1] - sigmas[k]) * model.velocity(x, s, context, h, w).float()
    return x
