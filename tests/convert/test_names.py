# SPDX-License-Identifier: Apache-2.0
"""Name tables against lists made with diffusers' own converters, of the released shapes."""

import json

import pytest
from bonsai_convert import names


@pytest.fixture(scope="module")
def transformer(formats):
    return json.loads((formats / "flux2_klein4b_names.json").read_text())


@pytest.fixture(scope="module")
def vae(formats):
    return json.loads((formats / "flux2_vae_names.json").read_text())


def test_transformer(transformer):
    rules = {r.bfl: r for r in names.transformer_rules(5, 20)}
    assert rules.keys() == {t["bfl"] for t in transformer["tensors"]}
    for t in transformer["tensors"]:
        rule = rules[t["bfl"]]
        assert list(rule.diffusers) == t["diffusers"]
        assert (rule.op == "stack") == (len(t["diffusers"]) == 3)
        assert (rule.op == "swap") == ("swap" in t["op"])
    assert {n for r in rules.values() for n in r.diffusers} == set(transformer["diffusers_shapes"])


def test_blocks_are_counted(transformer):
    there = [t["bfl"] for t in transformer["tensors"]]
    assert names.count(there, "double_blocks.") == 5
    assert names.count(there, "single_blocks.") == 20
    assert names.count([], "double_blocks.") == 0


def test_vae_both_ways(vae):
    assert len(vae) == 251
    for row in vae:
        assert names.vae_from_ldm(row["bfl"], 4) == row["diffusers"]
        assert names.vae_to_ldm(row["diffusers"], 4) == row["bfl"]


def test_vae_in_bfls_own_file():
    assert names.vae_from_ldm("encoder.quant_conv.weight", 4) == "quant_conv.weight"
    assert names.vae_from_ldm("decoder.post_quant_conv.bias", 4) == "post_quant_conv.bias"


@pytest.mark.parametrize("name", ["decoder.up.9.block.0.conv1.weight", "decoder.up.0.attn.0.q.bias",
                                  "loss.discriminator", "decoder", ""])  # fmt: skip
def test_other_vae_names(name):
    assert names.vae_from_ldm(name, 4) is None


def test_text_encoder():
    tensors = pytest.importorskip("gguf.tensor_mapping")
    constants = pytest.importorskip("gguf.constants")
    table = tensors.get_tensor_name_map(constants.MODEL_ARCH.QWEN3, 36)
    for ours in ("token_embd", "output_norm", "output", "blk.7.attn_norm", "blk.35.attn_q",
                 "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_q_norm", "blk.0.attn_k_norm",
                 "blk.0.attn_output", "blk.0.ffn_norm", "blk.0.ffn_gate", "blk.0.ffn_up",
                 "blk.0.ffn_down"):  # fmt: skip
        hf = names.text_from_llama(f"{ours}.weight")
        assert table.get_name(hf, (".weight",)) == f"{ours}.weight"
    assert names.text_from_llama("blk.0.ssm_a.weight") is None
    assert names.text_from_llama("rope_freqs.weight") is None
