# SPDX-License-Identifier: Apache-2.0
"""A model file of this converter as a source: to make it anew in other types, or to write it out in
the layout of another program."""

from __future__ import annotations

from pathlib import Path

from . import gguf
from .config import Derived
from .errors import ConvertError
from .jsonfile import brief
from .places import Places

_LISTS = ("bonsai.dit.rope_axes", "bonsai.te.out_layers", "bonsai.vae.decoder_widths")


class Keys:
    """Keys of a model file; an absent one is an error that names it."""

    def __init__(self, path: Path, keys: dict[str, object]) -> None:
        self.path, self.keys = path, keys

    def __getitem__(self, name: str) -> object:
        if name not in self.keys:
            raise ConvertError(f"{self.path}: key '{name}' missing; convert the source again")
        value = self.keys[name]
        if isinstance(value, list) != (name in _LISTS):
            raise ConvertError(f"{self.path}: key '{name}' is {brief(value)}")
        return value

    def number(self, name: str) -> float:
        """A float32 as it was written down before it became one."""
        value = self[name]
        if type(value) is not float:
            raise ConvertError(f"{self.path}: key '{name}' is {brief(value)}, expected a float")
        return float(f"{value:.7g}")

    def positive(self, name: str) -> int:
        value = self[name]
        if type(value) is not int or value < 1:
            raise ConvertError(f"{self.path}: key '{name}' is {brief(value)}, expected 1 or more")
        return value


def _transformer(k: Keys) -> dict:
    width = k.positive("bonsai.dit.heads") * k.positive("bonsai.dit.head_dim")
    return {
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": k["bonsai.dit.double_blocks"],
        "num_single_layers": k["bonsai.dit.single_blocks"],
        "num_attention_heads": k["bonsai.dit.heads"],
        "attention_head_dim": k["bonsai.dit.head_dim"],
        "in_channels": k["bonsai.dit.in_channels"],
        "out_channels": None,
        "joint_attention_dim": k["bonsai.dit.context_width"],
        "mlp_ratio": k.positive("bonsai.dit.mlp_width") / width,
        "timestep_guidance_channels": k["bonsai.dit.time_channels"],
        "axes_dims_rope": k["bonsai.dit.rope_axes"],
        "rope_theta": k.number("bonsai.dit.rope_theta"),
        "eps": k.number("bonsai.dit.norm_eps"),
        "patch_size": 1,
        "guidance_embeds": False,
    }


def _text_encoder(k: Keys) -> dict:
    layers = k.positive("bonsai.te.layers")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": k["bonsai.te.vocab_size"],
        "hidden_size": k["bonsai.te.width"],
        # The source had more layers than are ever read, unless the last one's output is.
        "num_hidden_layers": layers if k["bonsai.te.final_norm"] is True else layers + 1,
        "num_attention_heads": k["bonsai.te.heads"],
        "num_key_value_heads": k["bonsai.te.kv_heads"],
        "head_dim": k["bonsai.te.head_dim"],
        "intermediate_size": k["bonsai.te.ffn_width"],
        "rms_norm_eps": k.number("bonsai.te.norm_eps"),
        "rope_theta": k.number("bonsai.te.rope_theta"),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def _vae(k: Keys) -> dict:
    decoder = k["bonsai.vae.decoder_widths"]
    encoder = k.keys.get("bonsai.vae.encoder_widths", decoder)
    settings = {
        "_class_name": "AutoencoderKLFlux2",
        "latent_channels": k["bonsai.vae.latent_channels"],
        "block_out_channels": encoder,
        "layers_per_block": k["bonsai.vae.layers_per_block"],
        "norm_num_groups": k["bonsai.vae.norm_groups"],
        "batch_norm_eps": k.number("bonsai.vae.bn_eps"),
        "mid_block_add_attention": k["bonsai.vae.mid_attention"],
        "act_fn": "silu",
        "patch_size": [2, 2],
        "in_channels": 3,
        "out_channels": 3,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    if encoder != decoder:
        settings["decoder_block_out_channels"] = decoder
    return settings


def _index(k: Keys) -> dict:
    return {
        "_class_name": "Flux2KleinPipeline",
        "is_distilled": k["bonsai.distilled"],
        "text_encoder_out_layers": k["bonsai.te.out_layers"],
        "max_sequence_length": k["bonsai.te.max_tokens"],
        "default_width": k["bonsai.default.width"],
        "default_height": k["bonsai.default.height"],
        "default_steps": k["bonsai.default.steps"],
        "default_guidance": k.number("bonsai.default.guidance"),
    }


def _scheduler(k: Keys) -> dict:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_dynamic_shifting": k["bonsai.schedule.dynamic"],
        "shift": k.number("bonsai.schedule.shift"),
        "time_shift_type": k["bonsai.schedule.type"],
        "num_train_timesteps": k["bonsai.schedule.train_steps"],
    }


def settings_of(k: Keys) -> dict[str, dict]:
    """The settings files of diffusers' layout that give these keys."""
    return {
        "model_index": _index(k),
        "transformer": _transformer(k),
        "text_encoder": _text_encoder(k),
        "vae": _vae(k),
        "scheduler": _scheduler(k),
    }


def find(path: Path) -> Places:
    k = Keys(path, gguf.Reader(path).keys)
    parts = dict.fromkeys(("transformer", "text_encoder", "vae"), path)
    return Places(parts, path, {n: Derived(s, path) for n, s in settings_of(k).items()})


def general(path: Path) -> dict[str, str]:
    """Name, licence and origin, as far as they are given."""
    keys = gguf.Reader(path).keys
    return {k: v for k, v in keys.items() if k.startswith("general.") and isinstance(v, str)}
