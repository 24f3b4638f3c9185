# SPDX-License-Identifier: Apache-2.0
"""Sizes of the 4B model, computed from its settings: no weights are needed for that."""

import math
from pathlib import Path

import pytest
from bonsai_convert import config, layout, plan
from bonsai_convert.safetensors import Entry

TRANSFORMER = config.Transformer(
    double_blocks=5, single_blocks=20, heads=24, head_dim=128, in_channels=128,
    context_width=7680, mlp_width=9216, time_channels=256, rope_axes=[32] * 4,
    rope_theta=2000.0, norm_eps=1e-6,
)  # fmt: skip
TEXT = config.TextEncoder(
    vocab_size=151936, width=2560, source_layers=36, heads=32, kv_heads=8, head_dim=128,
    ffn_width=9728, norm_eps=1e-6, rope_theta=1e6, out_layers=[9, 18, 27],
)  # fmt: skip
VAE = config.Vae(
    latent_channels=32, encoder_widths=[128, 256, 512, 512],
    decoder_widths=[128, 256, 512, 512], layers_per_block=2, norm_groups=32, bn_eps=1e-4,
    mid_attention=True,
)  # fmt: skip


def all_tensors():
    expected = [
        *layout.text_tensors(TEXT, "model."),
        *layout.transformer_tensors(TRANSFORMER),
        *layout.vae_tensors(VAE, with_encoder=True),
    ]
    path = Path("nowhere")
    return [
        layout.Found(e, Entry(path, e.source, "BF16", e.shape, 0, 2 * math.prod(e.shape)))
        for e in expected
    ]


@pytest.fixture
def sizes(monkeypatch):
    """kind, choices -> GB of the part of the file whose names start with the prefix."""

    def compute(kind, prefix, **choices):
        monkeypatch.setattr(
            plan,
            "find_kinds",
            lambda files, blocks, whole: {f.expected.target: kind for f in blocks},
        )
        made = plan.make_plan(None, all_tensors(), plan.Choices(**choices))
        return sum(i.info.nbytes for i in made.items if i.info.name.startswith(prefix)) / 1e9

    return compute


def test_counts_are_those_of_the_published_model():
    tensors = all_tensors()
    dit = [f for f in tensors if f.expected.target.startswith("dit.")]
    blocks = [f for f in dit if f.expected.role == "block"]
    assert (len(dit), len(blocks)) == (169, 100)
    assert sum(f.entry.nbytes for f in dit) == 2 * 3_875_544_576
    assert sum(f.entry.nbytes for f in blocks) == 2 * 3_680_501_760
    vae = [f for f in tensors if f.expected.target.startswith("vae.")]
    assert len(vae) == 250  # 251 with the counter that is left out
    assert sum(f.entry.nbytes for f in vae) == 2 * (84_046_115 + 256)
    te = [f for f in tensors if f.expected.target.startswith("te.")]
    assert sum(f.entry.nbytes for f in te) == 2 * (2_725_132_032 + 388_956_160)


@pytest.mark.parametrize("kind, aux, limit", [
    ("ternary", "keep", 1.20), ("ternary", "q8", 1.02),
    ("binary", "keep", 0.92), ("binary", "q8", 0.73),
])  # fmt: skip
def test_transformer_bytes(sizes, kind, aux, limit):
    assert 0.95 * limit < sizes(kind, "dit.", aux=aux) <= limit


def test_compact_file(sizes):
    compact = {"text_encoder": "q4", "aux": "q8", "vae": "f16"}
    assert 3.1 < sizes("ternary", "", **compact) <= 3.15
    assert sizes("ternary", "te.", **compact) == pytest.approx(1.946, abs=0.001)


def test_names_fit_stock_readers():
    assert max(len(f.expected.target) for f in all_tensors()) <= 63
