# SPDX-License-Identifier: Apache-2.0
"""Write a trained state as an ordinary Hugging Face directory in the diffusers layout.

`python -m convert.seedling.export --variant ternary --state .seedling/state OUTDIR`
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import model, state, tokenizer

DESCRIPTION = (
    "Bonsai Seedling, a small demo model that draws emoji and coloured shapes. Artwork learned:"
    " Noto Color Emoji, copyright Google LLC (font under the SIL Open Font License 1.1, pictures"
    " under the Apache License 2.0), and shapes drawn by the recipe."
)
CARD = f"""---
license: apache-2.0
license_link: https://www.apache.org/licenses/LICENSE-2.0
description: {DESCRIPTION}
---

{DESCRIPTION}
"""


def write_json(path, obj):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")


def export_dit(dit, variant, folder):
    """float16; every group of a block linear is exactly s * {-1, 0, 1} with s a float16 value."""
    tensors, low = {}, []
    for name, w in dit.state_dict().items():
        if variant != "dense" and model.is_block_linear(name):
            w = model.quantise(w.float(), variant, torch.float16)
            low.append(name)
        tensors[name] = w.to(torch.float16).contiguous()
    config = {**model.DIT_CONFIG, "axes_dims_rope": list(model.DIT_CONFIG["axes_dims_rope"])}
    write_json(
        folder / "config.json",
        dict(_class_name="Flux2Transformer2DModel", _diffusers_version="0.37.0", **config),
    )
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    if low:
        write_json(
            folder / "lowbit.json",
            dict(
                kind=variant,
                group_size=model.GROUP,
                group_axis="input features",
                scale_dtype="float16",
                linears=low,
            ),
        )


def export_text(text, ids, folder):
    config = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        attention_dropout=0.0,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        initializer_range=0.02,
        max_window_layers=model.TEXT_CONFIG["num_hidden_layers"],
        rope_scaling=None,
        sliding_window=None,
        dtype="float16",
        use_cache=True,
        **model.TEXT_CONFIG,
    )
    write_json(folder / "config.json", config)
    save_file(
        {"model." + k: v.to(torch.float16).contiguous() for k, v in text.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def export_vae(vae, folder):
    config = dict(
        act_fn="silu",
        batch_norm_eps=1e-4,
        batch_norm_momentum=0.1,
        in_channels=3,
        out_channels=3,
        patch_size=[2, 2],
        use_post_quant_conv=True,
        use_quant_conv=True,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        **{**model.VAE_CONFIG, "block_out_channels": list(model.VAE_CONFIG["block_out_channels"])},
    )
    write_json(
        folder / "config.json",
        dict(_class_name="AutoencoderKLFlux2", _diffusers_version="0.37.0", **config),
    )
    save_file(
        {
            k: (v if k.startswith("bn.") else v.to(torch.float16)).contiguous()
            for k, v in vae.state_dict().items()
        },
        folder / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )


def export_index(folder):
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        dict(
            _class_name="FlowMatchEulerDiscreteScheduler",
            _diffusers_version="0.37.0",
            base_image_seq_len=256,
            base_shift=0.5,
            invert_sigmas=False,
            max_image_seq_len=4096,
            max_shift=1.15,
            num_train_timesteps=1000,
            shift=model.SHIFT,
            shift_terminal=None,
            stochastic_sampling=False,
            time_shift_type="exponential",
            use_beta_sigmas=False,
            use_dynamic_shifting=False,
            use_exponential_sigmas=False,
            use_karras_sigmas=False,
        ),
    )
    write_json(
        folder / "model_index.json",
        dict(
            _class_name="Flux2KleinPipeline",
            _diffusers_version="0.37.0",
            is_distilled=True,
            text_encoder_out_layers=list(model.OUT_LAYERS),
            max_sequence_length=tokenizer.MAX_TOKENS,
            default_width=model.SIZE,
            default_height=model.SIZE,
            default_steps=model.STEPS,
            scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
            text_encoder=["transformers", "Qwen3ForCausalLM"],
            tokenizer=["transformers", "Qwen2TokenizerFast"],
            transformer=["diffusers", "Flux2Transformer2DModel"],
            vae=["diffusers", "AutoencoderKLFlux2"],
        ),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("out", type=Path)
    p.add_argument("--variant", choices=model.VARIANTS, default="ternary")
    p.add_argument("--state", default=".seedling/state")
    p.add_argument("--tokenizer", default=".seedling/tokenizer")
    a = p.parse_args()
    net, vae = model.TextToVelocity(a.variant), model.build_vae()
    for stem, module in ((a.variant, net), ("vae", vae)):
        if not state.load_module(a.state, stem, module):
            raise SystemExit(f"no state `{stem}` in {a.state}: train it first")
    export_index(a.out)
    export_dit(net.dit, a.variant, a.out / "transformer")
    source = tokenizer.Encoder(a.tokenizer).tok
    tokenizer.write(source, a.out / "tokenizer")
    ids = {t: source.token_to_id(t) for t in tokenizer.SPECIAL}
    export_text(net.text, ids, a.out / "text_encoder")
    export_vae(vae, a.out / "vae")
    (a.out / "README.md").write_text(CARD, encoding="utf-8")


if __name__ == "__main__":
    main()
