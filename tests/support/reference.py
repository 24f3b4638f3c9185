# SPDX-License-Identifier: Apache-2.0
"""Runs the reference pipeline (transformers + diffusers, CPU) and returns its intermediates.

    python tests/support/reference.py CHECKPOINT --prompt "..." --out dump.npz

Every array is two-dimensional, rows x columns, in the order the engine's probe writes:
tokens x channels, or pixels (row by row) x channels. Floats are float32 whatever was computed in.

input_ids, attention_mask   1 x T
te_hidden_{k}               T x D, hidden_states[k] of the text encoder for each k that is read
prompt_embeds               T x 3D; neg_prompt_embeds likewise, with guidance only
noise                       N x channels, the packed order
sigmas, timesteps           1 x (steps + 1), 1 x steps
s0_temb, s0_mod_img, s0_mod_txt, s0_mod_single             1 x width; first step, prompt pass
s0_x_embed, s0_ctx_embed, s0_double{i}_img, s0_double{i}_txt, s0_single{i}   tokens x C;
                            single blocks hold the text rows first
velocity_{k}                N x channels, what the Euler step takes (after guidance);
                            with guidance also velocity_cond_{k} and velocity_uncond_{k}
latents_{k}                 N x channels after step k
latents_unpatchified        (H/8 * W/8) x latent channels, denormalised: the decoder's input
vae_conv_in, vae_mid, vae_up{i}, vae_out                   pixels x channels; out is not clamped
image_uint8                 (H * W) x 3
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The versions that the goldens come from; CI installs exactly these.
VERSIONS = {"torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"}


@dataclass(frozen=True)
class Options:
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float = 1.0
    dtype: str = "f32"
    noise_dtype: str | None = None  # None: as dtype, which is what the pipeline does by itself
    static_shift: float | None = None  # overrides the schedule of the checkpoint


def unavailable() -> str | None:
    """Why the reference cannot run here, or None if it can."""
    from importlib.metadata import PackageNotFoundError, version

    for package, wanted in VERSIONS.items():
        try:
            found = version(package).split("+")[0]
        except PackageNotFoundError:
            return f"{package} {wanted} is not installed"
        if found != wanted:
            return f"{package} is {found}, the goldens need {wanted}"
    return None


def as_rows(value) -> np.ndarray:
    """A tensor of one picture as rows x columns (see the module's text)."""
    import torch

    if torch.is_tensor(value):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    value = np.asarray(value)
    if value.ndim == 4:  # (1, channels, rows, columns)
        return np.ascontiguousarray(value[0].reshape(value.shape[1], -1).T)
    if value.ndim == 3:  # (1, tokens, channels)
        return value[0].copy()
    return np.atleast_2d(value).copy()


class Tape:
    """Named arrays, filled by hand or by forward hooks."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, name: str, value) -> None:
        self.arrays[name] = as_rows(value)

    def put_once(self, name: str, value) -> None:
        if name not in self.arrays:
            self.put(name, value)

    def watch(self, module, *names: str) -> None:
        """Keep the first output of `module`; several names for a module that returns a tuple."""

        def hook(_module, _inputs, output):
            parts = output if isinstance(output, tuple) else (output,)
            for name, part in zip(names, parts):
                self.put_once(name, part)

        module.register_forward_hook(hook)


def _encode(tape: Tape, folder: Path, options: Options, index: dict, dtype, guided: bool):
    """Prompt embeddings of the prompt and, with guidance, of the empty prompt."""
    from diffusers import Flux2KleinPipeline
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=dtype).eval()
    layers = index.get("text_encoder_out_layers", [9, 18, 27])
    seen: list = []
    encoder.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw), with_kwargs=True)
    encoder.register_forward_hook(lambda _m, _a, out: seen.append(out.hidden_states))

    def encode(prompt: str):
        return Flux2KleinPipeline._get_qwen3_prompt_embeds(
            encoder,
            tokenizer,
            prompt,
            max_sequence_length=index.get("max_sequence_length", 512),
            hidden_states_layers=layers,
        )

    embeds = encode(options.prompt)
    inputs, hidden = seen
    tape.put("input_ids", inputs["input_ids"])
    tape.put("attention_mask", inputs["attention_mask"])
    for layer in layers:
        tape.put(f"te_hidden_{layer}", hidden[layer])
    tape.put("prompt_embeds", embeds)
    if not guided:
        return embeds, None
    negative = encode("")
    tape.put("neg_prompt_embeds", negative)
    return embeds, negative


def _watch_models(tape: Tape, transformer, vae) -> None:
    tape.watch(transformer.time_guidance_embed, "s0_temb")
    tape.watch(transformer.double_stream_modulation_img, "s0_mod_img")
    tape.watch(transformer.double_stream_modulation_txt, "s0_mod_txt")
    tape.watch(transformer.single_stream_modulation, "s0_mod_single")
    tape.watch(transformer.x_embedder, "s0_x_embed")
    tape.watch(transformer.context_embedder, "s0_ctx_embed")
    for i, block in enumerate(transformer.transformer_blocks):
        tape.watch(block, f"s0_double{i}_txt", f"s0_double{i}_img")
    for i, block in enumerate(transformer.single_transformer_blocks):
        tape.watch(block, f"s0_single{i}")
    vae.post_quant_conv.register_forward_pre_hook(
        lambda _m, inputs: tape.put("latents_unpatchified", inputs[0])
    )
    tape.watch(vae.decoder.conv_in, "vae_conv_in")
    tape.watch(vae.decoder.mid_block, "vae_mid")
    for i, block in enumerate(vae.decoder.up_blocks):
        tape.watch(block, f"vae_up{i}")
    tape.watch(vae.decoder, "vae_out")


def _watch_steps(tape: Tape, transformer, scheduler, guided: bool) -> None:
    outputs: list = []
    transformer.register_forward_hook(lambda _m, _a, out: outputs.append(out[0]))
    inner = scheduler.step
    count = iter(range(1 << 30))

    def step(model_output, timestep, sample, **kwargs):
        k = next(count)
        tape.put(f"velocity_{k}", model_output)
        if guided:
            tape.put(f"velocity_cond_{k}", outputs[-2])
            tape.put(f"velocity_uncond_{k}", outputs[-1])
        result = inner(model_output, timestep, sample, **kwargs)
        tape.put(f"latents_{k}", result[0])
        return result

    scheduler.step = step


def _scheduler(folder: Path, static_shift: float | None):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    if static_shift is None:
        return scheduler
    return FlowMatchEulerDiscreteScheduler.from_config(
        scheduler.config, use_dynamic_shifting=False, shift=static_shift
    )


def torch_noise(channels: int, height: int, width: int, seed: int, dtype: str):
    """The noise of a picture as the pipeline draws it: (1, channels, H/16, W/16)."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, height // 16, width // 16)
    return torch.randn(shape, generator=generator, dtype=_dtype(dtype))


def torch_level() -> str:
    """The instruction set that torch uses here, such as AVX2."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _dtype(name: str):
    import torch

    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[name]


def run(folder: Path, options: Options) -> dict[str, np.ndarray]:
    """All intermediates of one picture, by name."""
    arrays = _run(folder, options)
    gc.collect()  # hooks and modules refer to each other: without this the weights would stay
    return arrays


def _run(folder: Path, options: Options) -> dict[str, np.ndarray]:
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    dtype = _dtype(options.dtype)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    distilled = bool(index.get("is_distilled", False))
    guided = options.guidance > 1.0 and not distilled
    tape = Tape()
    with torch.inference_mode():
        embeds, negative = _encode(tape, folder, options, index, dtype, guided)
        transformer = Flux2Transformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype
        ).eval()
        vae = AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=dtype).eval()
        pipeline = Flux2KleinPipeline(
            scheduler=_scheduler(folder, options.static_shift),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            is_distilled=distilled,
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = torch_noise(
            transformer.config.in_channels,
            options.height,
            options.width,
            options.seed,
            options.noise_dtype or options.dtype,
        )
        tape.put("noise", noise)
        _watch_models(tape, transformer, vae)
        _watch_steps(tape, transformer, pipeline.scheduler, guided)
        image = pipeline(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            height=options.height,
            width=options.width,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            latents=noise,
        ).images[0]
    tape.put("sigmas", pipeline.scheduler.sigmas)
    tape.put("timesteps", pipeline.scheduler.timesteps)
    tape.arrays["image_uint8"] = np.asarray(image).reshape(-1, 3)
    return tape.arrays


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
    parser.add_argument("--noise-dtype", choices=["f32", "bf16", "f16"])
    parser.add_argument("--static-shift", type=float)
    parser.add_argument("--out", type=Path, required=True)
    args = vars(parser.parse_args())
    checkpoint, out = args.pop("checkpoint"), args.pop("out")
    arrays = run(checkpoint, Options(**args))
    np.savez(out, **arrays)
    print(f"{len(arrays)} arrays -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
