# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, contradictions, and values the engine does not implement."""

import pytest
from bonsai_convert import config
from bonsai_convert.errors import ConvertError
from minimal import edit_json

INDEX, DIT, TEXT, VAE, SCHEDULER = (
    "model_index.json", "transformer/config.json", "text_encoder/config.json",
    "vae/config.json", "scheduler/scheduler_config.json",
)  # fmt: skip


def test_what_is_read(checkpoint):
    edit_json(checkpoint / INDEX, default_width=512, default_height=768, default_steps=6)
    p = config.read_pipeline(checkpoint)
    assert (p.width, p.height, p.steps, p.guidance, p.max_tokens) == (512, 768, 6, 1.0, 512)
    assert (p.text.layers, p.text.final_norm, p.text.rope_theta) == (2, False, 1e6)
    assert (p.transformer.mlp_width, p.transformer.time_channels) == (384, 256)
    keys = config.gguf_keys(p, "ternary", with_encoder=True)
    assert keys["bonsai.te.out_layers"].value == [1, 2]
    assert keys["bonsai.vae.encoder_widths"].value == [32, 64, 64, 64]
    assert keys["bonsai.prompt.prefix"].value == "<|im_start|>user\n"


def test_defaults_of_klein(checkpoint):
    edit_json(checkpoint / INDEX, is_distilled=..., text_encoder_out_layers=...)
    edit_json(checkpoint / TEXT, num_hidden_layers=36)
    edit_json(checkpoint / DIT, joint_attention_dim=3 * 128)
    p = config.read_pipeline(checkpoint)
    assert p.text.out_layers == [9, 18, 27]
    assert (p.width, p.height, p.max_tokens) == (1024, 1024, 512)
    assert (p.distilled, p.steps, p.guidance) == (False, 50, 4.0)


def test_rope_theta_at_the_top_level_and_last_layer_after_the_norm(checkpoint):
    edit_json(checkpoint / TEXT, rope_parameters=..., rope_theta=5e6)
    edit_json(checkpoint / INDEX, text_encoder_out_layers=[1, 3])
    p = config.read_pipeline(checkpoint)
    assert (p.text.rope_theta, p.text.final_norm) == (5e6, True)


@pytest.mark.parametrize("file, changes, message", [
    (INDEX, {"_class_name": "FluxPipeline"}, "Flux2KleinPipeline.*found 'FluxPipeline'"),
    (INDEX, {"is_distilled": "yes"}, "is_distilled.*true or false"),
    (INDEX, {"text_encoder_out_layers": [2, 1]}, "ascending"),
    (INDEX, {"text_encoder_out_layers": [1, 4]}, "text_encoder_out_layers"),
    (INDEX, {"text_encoder_out_layers": ...}, "3 layers, but the outputs of layers"),
    (INDEX, {"text_encoder_out_layers": [1]}, "reads 256 prompt features, the encoder gives"),
    (INDEX, {"default_width": 1000}, "multiple of 16"),
    (INDEX, {"default_height": 0}, "default_height"),
    (INDEX, {"max_sequence_length": 0}, "max_sequence_length"),
    (DIT, {"_class_name": "FluxTransformer2DModel"}, "Flux2Transformer2DModel"),
    (DIT, {"patch_size": 2}, "patch_size"),
    (DIT, {"guidance_embeds": True}, "guidance_embeds"),
    (DIT, {"axes_dims_rope": [16, 56, 56]}, "axes_dims_rope"),
    (DIT, {"num_layers": "5"}, "num_layers"),
    (DIT, {"num_layers": 1 << 40}, "num_layers"),
    (DIT, {"num_attention_heads": ...}, "num_attention_heads.*nothing"),
    (DIT, {"attention_head_dim": 12}, "multiple of 8"),
    (DIT, {"timestep_guidance_channels": 255}, "an even number"),
    (DIT, {"mlp_ratio": 1.001}, "mlp_ratio"),
    (DIT, {"out_channels": 7}, "out_channels"),
    (DIT, {"in_channels": 64}, "64 channels, the VAE 4 x"),
    (TEXT, {"model_type": "mistral"}, "'qwen3'.*'mistral'"),
    (TEXT, {"attention_bias": True}, "attention_bias"),
    (TEXT, {"head_dim": 60}, "multiple of 8"),
    (TEXT, {"hidden_act": "gelu"}, "hidden_act"),
    (TEXT, {"use_sliding_window": True}, "use_sliding_window"),
    (TEXT, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "scaled rotary"),
    (TEXT, {"rope_scaling": {"type": "linear", "factor": 2}}, "scaled rotary"),
    (TEXT, {"rope_parameters": ...}, "rope_theta"),
    (TEXT, {"num_key_value_heads": 3}, "num_key_value_heads"),
    (VAE, {"_class_name": "AutoencoderKL"}, "AutoencoderKLFlux2"),
    (VAE, {"act_fn": "relu"}, "act_fn"),
    (VAE, {"patch_size": [1, 1]}, "patch_size"),
    (VAE, {"norm_num_groups": 24}, "norm_num_groups"),
    (VAE, {"block_out_channels": [32, 64]}, "four widths"),
    (VAE, {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types"),
    (SCHEDULER, {"_class_name": "DDIMScheduler"}, "FlowMatchEulerDiscreteScheduler"),
    (SCHEDULER, {"use_karras_sigmas": True}, "use_karras_sigmas"),
    (SCHEDULER, {"use_beta_sigmas": True}, "use_beta_sigmas"),
    (SCHEDULER, {"shift_terminal": 0.1}, "shift_terminal"),
    (SCHEDULER, {"invert_sigmas": True}, "invert_sigmas"),
    (SCHEDULER, {"time_shift_type": "cosine"}, "time_shift_type"),
])  # fmt: skip
def test_refused_settings_name_file_and_key(checkpoint, file, changes, message):
    edit_json(checkpoint / file, **changes)
    with pytest.raises(ConvertError, match=message) as e:
        config.read_pipeline(checkpoint)
    assert str(checkpoint) in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{" * 100000, "\x00"])
@pytest.mark.parametrize("file", [INDEX, DIT, TEXT, VAE, SCHEDULER])
def test_broken_json_names_the_file(checkpoint, file, text):
    (checkpoint / file).write_text(text)
    with pytest.raises(ConvertError, match=file):
        config.read_pipeline(checkpoint)


def test_missing_file(checkpoint):
    (checkpoint / SCHEDULER).unlink()
    with pytest.raises(ConvertError, match="scheduler_config.json: missing"):
        config.read_pipeline(checkpoint)
