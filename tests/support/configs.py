# SPDX-License-Identifier: Apache-2.0
"""Component configs of the test checkpoints, in the words of the Hugging Face config files.

tiny   klein's structure at 1/12 of its width; a few million parameters
small  between tiny and klein: enough heads and layers for realistic error growth
full   the sizes of klein 4B: 16 GB, for measurements by hand
odd    every size that may differ from klein does: layer counts, rope axes, MLP ratio, latent
       channels, norm groups, text length, static schedule, undistilled, final norm read
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

WEIGHTS = ("dense", "ternary", "binary")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a checkpoint."""

    config: str
    weights: str = "dense"
    outlier: float = 0.0  # size of the massive activation on the first template token; 0: none
    small_decoder: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise ValueError(f"unknown config {self.config!r}: expected one of {sorted(CONFIGS)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"unknown weights {self.weights!r}: expected one of {WEIGHTS}")
        if self.small_decoder and "small_decoder" not in CONFIGS[self.config]:
            raise ValueError(f"config {self.config!r} has no small decoder")

    def as_dict(self) -> dict:
        return asdict(self)

    @property
    def label(self) -> str:
        parts = [self.config, self.weights]
        if self.outlier:
            parts.append(f"o{self.outlier:g}")
        if self.small_decoder:
            parts.append("smalldec")
        return "-".join(parts) + (f"-s{self.seed}" if self.seed else "")


CONFIGS: dict[str, dict] = {
    "tiny": {
        "transformer": {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2},
        "text": {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 28,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
        "vae": {"block_out_channels": [32, 64, 96, 96]},
        "small_decoder": [32, 32, 64, 64],
    },
    "small": {
        "transformer": {"num_layers": 3, "num_single_layers": 4, "num_attention_heads": 4},
        "text": {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 29,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
        "vae": {"block_out_channels": [32, 64, 96, 96]},
        "small_decoder": [32, 32, 64, 64],
    },
    "full": {
        "transformer": {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24},
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "small_decoder": [96, 192, 384, 384],
    },
    "odd": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 3,
            "in_channels": 64,
            "mlp_ratio": 2.3333333333333335,  # 384 * 7 / 3 = 896, still whole groups of 128
            "axes_dims_rope": [16, 48, 48, 16],
            "rope_theta": 10000,
            "timestep_guidance_channels": 128,
        },
        "text": {
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 96,
            "rope_theta": 500000,
            "rms_norm_eps": 1e-5,
        },
        "vae": {
            "block_out_channels": [16, 48, 64, 80],
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "latent_channels": 16,
        },
        "scheduler": {"use_dynamic_shifting": False},
        # With as many layers as the last index says, that entry is taken after the final norm.
        "index": {
            "is_distilled": None,
            "text_encoder_out_layers": [1, 2, 3],
            "max_sequence_length": 64,
            "default_width": 96,
            "default_height": 80,
            "default_steps": 3,
        },
    },
}


def transformer_config(recipe: Recipe) -> dict:
    spec = CONFIGS[recipe.config]
    config = {
        "_class_name": "Flux2Transformer2DModel",
        "_diffusers_version": "0.37.0",
        "attention_head_dim": 128,
        "axes_dims_rope": [32, 32, 32, 32],
        "eps": 1e-6,
        "guidance_embeds": False,
        "in_channels": 128,
        "joint_attention_dim": 3 * spec["text"]["hidden_size"],
        "mlp_ratio": 3.0,
        "out_channels": None,
        "patch_size": 1,
        "rope_theta": 2000,
        "timestep_guidance_channels": 256,
    }
    return config | spec["transformer"]


def text_config(recipe: Recipe, vocab_size: int, ids: dict[str, int]) -> dict:
    spec = CONFIGS[recipe.config]["text"]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "max_window_layers": spec["num_hidden_layers"],
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }
    return config | spec


def vae_config(recipe: Recipe) -> dict:
    spec = CONFIGS[recipe.config]
    config = {
        "_class_name": "AutoencoderKLFlux2",
        "_diffusers_version": "0.37.0",
        "act_fn": "silu",
        "batch_norm_eps": 1e-4,
        "batch_norm_momentum": 0.1,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 32,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "patch_size": [2, 2],
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    if recipe.small_decoder:
        config["decoder_block_out_channels"] = spec["small_decoder"]
    return config | spec["vae"]


def scheduler_config(recipe: Recipe) -> dict:
    config = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.37.0",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }
    return config | CONFIGS[recipe.config].get("scheduler", {})


def model_index(recipe: Recipe) -> dict:
    index = {
        "_class_name": "Flux2KleinPipeline",
        "_diffusers_version": "0.37.0",
        "is_distilled": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    index |= CONFIGS[recipe.config].get("index", {})
    return {key: value for key, value in index.items() if value is not None}
