# SPDX-License-Identifier: Apache-2.0
"""Read and check the JSON settings of a diffusers checkpoint, and turn them into GGUF keys.

Unknown keys are ignored (released files carry leftovers of training); a known key with a value
the engine does not implement is an error, never a guess.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import gguf, jsonfile
from .errors import ConvertError
from .jsonfile import brief

KLEIN_OUT_LAYERS = [9, 18, 27]
KLEIN_MAX_TOKENS = 512
# (steps, guidance) where model_index.json does not say: distilled, undistilled.
KLEIN_SAMPLING = {True: (4, 1.0), False: (50, 4.0)}
KLEIN_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True,
    "time_shift_type": "exponential", "num_train_timesteps": 1000,
}  # fmt: skip
PROMPT_PREFIX = "<|im_start|>user\n"
PROMPT_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MISSING = object()


class Derived(dict):
    """Settings that a file's tensors or keys say; `label` names the file in messages."""

    def __init__(self, settings: dict, label: object) -> None:
        super().__init__(settings)
        self.label = f"{label} (sizes of its tensors)"


class Settings:
    """One JSON file with typed, bounded access; every failure names file, key and remedy.

    A dict in place of the path stands for a file that a layout does not have.
    """

    def __init__(
        self,
        path: Path | dict,
        hint: str = "download the checkpoint again",
        limit: int = 1 << 20,
        label: str = "settings of klein 4B",
    ) -> None:
        if isinstance(path, dict):
            self.path, self.data = getattr(path, "label", label), path
            return
        self.path = path
        try:
            self.data = jsonfile.parse(jsonfile.read_bytes(path, limit))
        except FileNotFoundError as e:
            raise ConvertError(f"{path}: missing; {hint}") from e
        except OSError as e:
            raise ConvertError(f"{path}: cannot be read: {e.strerror}") from e
        except ValueError as e:
            raise ConvertError(f"{path}: not valid JSON ({e}); {hint}") from e
        if not isinstance(self.data, dict):
            raise ConvertError(f"{path}: expected a JSON object; {hint}")

    def fail(self, key: str, expected: str, advice: str = "") -> ConvertError:
        found = brief(self.data[key]) if key in self.data else "nothing"
        tail = f"; {advice}" if advice else ""
        return ConvertError(f"{self.path}: '{key}': expected {expected}, found {found}{tail}")

    def get(self, key: str, default: object = _MISSING) -> object:
        """The raw value; null counts as absent where a default is given."""
        value = self.data.get(key, _MISSING)
        if value is _MISSING or (value is None and default is not _MISSING):
            if default is _MISSING:
                raise self.fail(key, "a value")
            return default
        return value

    def int(self, key: str, low: int, high: int, default: object = _MISSING) -> int:
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"a whole number from {low} to {high}")
        return value

    def float(self, key: str, low: float, high: float, default: object = _MISSING) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def bool(self, key: str, default: object = _MISSING) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false")
        return value

    def ints(self, key: str, low: int, high: int, default: object = _MISSING) -> list[int]:
        value = self.get(key, default)
        good = isinstance(value, list) and 1 <= len(value) <= 16
        if not good or any(type(v) is not int or not low <= v <= high for v in value):
            raise self.fail(key, f"a list of 1 to 16 whole numbers from {low} to {high}")
        return value

    def only(self, key: str, allowed: object, advice: str = "") -> None:
        """A key that may be absent, but if present has the one value the engine implements."""
        if key in self.data and self.data[key] != allowed:
            raise self.fail(key, json.dumps(allowed), advice or "the engine has no other form")

    def require_class(self, expected: str, advice: str = "") -> None:
        if self.data.get("_class_name") != expected:
            raise self.fail(
                "_class_name", f"'{expected}'", advice or "this is not a FLUX.2-klein-style model"
            )


@dataclass(frozen=True)
class Transformer:
    double_blocks: int
    single_blocks: int
    heads: int
    head_dim: int
    in_channels: int
    context_width: int
    mlp_width: int
    time_channels: int
    rope_axes: list[int]
    rope_theta: float
    norm_eps: float

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def read_transformer(path: Path | dict) -> Transformer:
    s = Settings(path)
    s.require_class("Flux2Transformer2DModel")
    for key, allowed in (("patch_size", 1), ("guidance_embeds", False)):
        s.only(key, allowed)
    heads = s.int("num_attention_heads", 1, 1024)
    head_dim = s.int("attention_head_dim", 8, 1024)
    if head_dim % 8:
        raise s.fail("attention_head_dim", "a multiple of 8")
    axes = s.ints("axes_dims_rope", 2, 1024, [32, 32, 32, 32])
    if len(axes) != 4 or sum(axes) != head_dim or any(a % 2 for a in axes):
        raise s.fail(
            "axes_dims_rope", f"four even numbers with sum {head_dim} (attention_head_dim)"
        )
    in_channels = s.int("in_channels", 1, 1 << 16)
    if s.get("out_channels", in_channels) != in_channels:
        raise s.fail("out_channels", f"null or in_channels ({in_channels})")
    time_channels = s.int("timestep_guidance_channels", 2, 1 << 16, 256)
    if time_channels % 2:
        raise s.fail("timestep_guidance_channels", "an even number")
    mlp = heads * head_dim * s.float("mlp_ratio", 0.01, 64, 3.0)
    if mlp != int(mlp) or not 1 <= mlp <= 1 << 18:
        raise s.fail("mlp_ratio", f"a ratio that gives a whole hidden width up to {1 << 18}")
    return Transformer(
        double_blocks=s.int("num_layers", 1, 256),
        single_blocks=s.int("num_single_layers", 1, 256),
        heads=heads,
        head_dim=head_dim,
        in_channels=in_channels,
        context_width=s.int("joint_attention_dim", 1, 1 << 18),
        mlp_width=int(mlp),
        time_channels=time_channels,
        rope_axes=axes,
        rope_theta=s.float("rope_theta", 1, 1e9, 2000),
        norm_eps=s.float("eps", 1e-12, 0.1, 1e-6),
    )


@dataclass(frozen=True)
class TextEncoder:
    vocab_size: int
    width: int
    source_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    rope_theta: float
    out_layers: list[int]

    @property
    def layers(self) -> int:
        """Layers stored: nothing after the last one whose output is read is ever computed."""
        return max(self.out_layers)

    @property
    def final_norm(self) -> bool:
        """transformers takes the last entry of hidden_states after the final norm."""
        return self.layers == self.source_layers


def _rope_type(inner: dict) -> object:
    return inner.get("rope_type", inner.get("type", "default"))


def _rope_theta(s: Settings) -> float:
    """Top level in older files, inside rope_parameters (or rope_scaling) in newer ones."""
    theta = s.get("rope_theta", None)
    for key in ("rope_parameters", "rope_scaling"):
        inner = s.get(key, None)
        if inner is None:
            continue
        if not isinstance(inner, dict) or _rope_type(inner) != "default":
            raise s.fail(key, "rope_type 'default'", "scaled rotary embeddings are not implemented")
        theta = inner.get("rope_theta", theta)
    if type(theta) not in (int, float) or not 1 <= theta <= 1e9:
        raise s.fail("rope_theta", "a number from 1 to 1e9, here or in 'rope_parameters'")
    return float(theta)


def read_text_encoder(path: Path | dict, index: Settings) -> TextEncoder:
    s = Settings(path)
    if s.get("model_type", "") != "qwen3":
        raise s.fail("model_type", "'qwen3'", "the engine's encoder is Qwen3, no other")
    for key, allowed in (("hidden_act", "silu"), ("attention_bias", False)):
        s.only(key, allowed)
    if s.get("use_sliding_window", False) is not False:
        raise s.fail("use_sliding_window", "false")
    layers = s.int("num_hidden_layers", 1, 512)
    out = index.ints("text_encoder_out_layers", 1, 512, KLEIN_OUT_LAYERS)
    if any(a >= b for a, b in zip(out, out[1:])):
        raise index.fail("text_encoder_out_layers", "ascending layer numbers")
    if out[-1] > layers:
        raise ConvertError(
            f"{s.path}: {layers} layers, but the outputs of layers {out} are to be read; "
            "set 'text_encoder_out_layers' in model_index.json"
        )
    width, heads = s.int("hidden_size", 1, 1 << 16), s.int("num_attention_heads", 1, 1024)
    kv_heads = s.int("num_key_value_heads", 1, heads, heads)
    if heads % kv_heads:
        raise s.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = s.int("head_dim", 8, 1024, width // heads)
    if head_dim % 8:
        raise s.fail("head_dim", "a multiple of 8")
    return TextEncoder(
        vocab_size=s.int("vocab_size", 1, 1 << 22),
        width=width,
        source_layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=s.int("intermediate_size", 8, 1 << 18),
        norm_eps=s.float("rms_norm_eps", 1e-12, 0.1, 1e-6),
        rope_theta=_rope_theta(s),
        out_layers=out,
    )


@dataclass(frozen=True)
class Vae:
    latent_channels: int
    encoder_widths: list[int]
    decoder_widths: list[int]
    layers_per_block: int
    norm_groups: int
    bn_eps: float
    mid_attention: bool


def read_vae(path: Path | dict) -> Vae:
    s = Settings(path)
    s.require_class("AutoencoderKLFlux2")
    fixed = {
        "act_fn": "silu", "patch_size": [2, 2], "in_channels": 3, "out_channels": 3,
        "use_quant_conv": True, "use_post_quant_conv": True,
    }  # fmt: skip
    for key, allowed in fixed.items():
        s.only(key, allowed)
    widths = s.ints("block_out_channels", 1, 1 << 14)
    decoder = s.ints("decoder_block_out_channels", 1, 1 << 14, widths)
    for key, kind, count in (
        ("down_block_types", "DownEncoderBlock2D", len(widths)),
        ("up_block_types", "UpDecoderBlock2D", len(decoder)),
    ):
        s.only(key, [kind] * count)
    if len(widths) != 4 or len(decoder) != 4:
        raise s.fail("block_out_channels", "four widths (a picture is 8 times its latents)")
    groups = s.int("norm_num_groups", 1, 1024, 32)
    if any(w % groups for w in widths + decoder):
        raise s.fail("norm_num_groups", f"a divisor of all widths {sorted({*widths, *decoder})}")
    return Vae(
        latent_channels=s.int("latent_channels", 1, 1024, 32),
        encoder_widths=widths,
        decoder_widths=decoder,
        layers_per_block=s.int("layers_per_block", 1, 16, 2),
        norm_groups=groups,
        bn_eps=s.float("batch_norm_eps", 1e-12, 0.1, 1e-4),
        mid_attention=s.bool("mid_block_add_attention", True),
    )


@dataclass(frozen=True)
class Schedule:
    dynamic: bool
    shift: float
    type: str
    train_steps: int


def read_schedule(path: Path | dict) -> Schedule:
    s = Settings(path)
    s.require_class("FlowMatchEulerDiscreteScheduler", "the engine has no other sampler")
    for key in (
        "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
        "invert_sigmas", "stochastic_sampling",
    ):  # fmt: skip
        s.only(key, False)
    s.only("shift_terminal", None)
    kind = s.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise s.fail("time_shift_type", "'exponential' or 'linear'")
    return Schedule(
        dynamic=s.bool("use_dynamic_shifting", False),
        shift=s.float("shift", 1e-3, 1e3, 1.0),
        type=kind,
        train_steps=s.int("num_train_timesteps", 1, 1 << 20, 1000),
    )


@dataclass(frozen=True)
class Pipeline:
    """All settings of a checkpoint, checked against each other."""

    transformer: Transformer
    text: TextEncoder
    vae: Vae
    schedule: Schedule
    distilled: bool
    max_tokens: int
    width: int
    height: int
    steps: int
    guidance: float


def diffusers_settings(root: Path) -> dict[str, Path | dict]:
    """Where a checkpoint in diffusers layout has its settings."""
    parts = ("transformer", "text_encoder", "vae")
    return {
        "model_index": root / "model_index.json",
        **{k: root / k / "config.json" for k in parts},
        "scheduler": root / "scheduler" / "scheduler_config.json",
    }


def read_pipeline(root: Path, settings: dict[str, Path | dict] | None = None) -> Pipeline:
    """`settings`: a file or a dict for each of the names above, where not those of diffusers."""
    places = settings or diffusers_settings(root)
    index = Settings(places["model_index"])
    index.require_class("Flux2KleinPipeline")
    distilled = index.bool("is_distilled", False)
    steps, guidance = KLEIN_SAMPLING[distilled]
    dit = read_transformer(places["transformer"])
    text = read_text_encoder(places["text_encoder"], index)
    vae = read_vae(places["vae"])
    if dit.context_width != len(text.out_layers) * text.width:
        raise ConvertError(
            f"{root}: the transformer reads {dit.context_width} prompt features, the encoder gives "
            f"{len(text.out_layers)} layers x {text.width}; set 'text_encoder_out_layers' in "
            "model_index.json, or use the encoder this transformer was trained with"
        )
    if dit.in_channels != 4 * vae.latent_channels:
        raise ConvertError(
            f"{root}: the transformer has {dit.in_channels} channels, the VAE 4 x "
            f"{vae.latent_channels} (2 x 2 patches of its latents); they do not belong together"
        )
    sizes = {k: index.int(k, 16, 1 << 14, 1024) for k in ("default_width", "default_height")}
    for key, size in sizes.items():
        if size % 16:
            raise index.fail(key, "a multiple of 16")
    return Pipeline(
        transformer=dit,
        text=text,
        vae=vae,
        schedule=read_schedule(places["scheduler"]),
        distilled=distilled,
        max_tokens=index.int("max_sequence_length", 1, 1 << 16, KLEIN_MAX_TOKENS),
        width=sizes["default_width"],
        height=sizes["default_height"],
        steps=index.int("default_steps", 1, 1000, steps),
        guidance=index.float("default_guidance", 0, 100, guidance),
    )


def gguf_keys(p: Pipeline, variant: str, with_encoder: bool) -> dict[str, gguf.Value]:
    """The keys of FORMAT.md that describe the network and its defaults."""
    t, e, v, s = p.transformer, p.text, p.vae, p.schedule
    keys = {
        "bonsai.variant": gguf.string(variant),
        "bonsai.distilled": gguf.boolean(p.distilled),
        "bonsai.dit.double_blocks": gguf.u32(t.double_blocks),
        "bonsai.dit.single_blocks": gguf.u32(t.single_blocks),
        "bonsai.dit.heads": gguf.u32(t.heads),
        "bonsai.dit.head_dim": gguf.u32(t.head_dim),
        "bonsai.dit.in_channels": gguf.u32(t.in_channels),
        "bonsai.dit.context_width": gguf.u32(t.context_width),
        "bonsai.dit.mlp_width": gguf.u32(t.mlp_width),
        "bonsai.dit.time_channels": gguf.u32(t.time_channels),
        "bonsai.dit.rope_axes": gguf.u32_array(t.rope_axes),
        "bonsai.dit.rope_theta": gguf.f32(t.rope_theta),
        "bonsai.dit.norm_eps": gguf.f32(t.norm_eps),
        "bonsai.te.vocab_size": gguf.u32(e.vocab_size),
        "bonsai.te.width": gguf.u32(e.width),
        "bonsai.te.layers": gguf.u32(e.layers),
        "bonsai.te.heads": gguf.u32(e.heads),
        "bonsai.te.kv_heads": gguf.u32(e.kv_heads),
        "bonsai.te.head_dim": gguf.u32(e.head_dim),
        "bonsai.te.ffn_width": gguf.u32(e.ffn_width),
        "bonsai.te.norm_eps": gguf.f32(e.norm_eps),
        "bonsai.te.rope_theta": gguf.f32(e.rope_theta),
        "bonsai.te.out_layers": gguf.u32_array(e.out_layers),
        "bonsai.te.max_tokens": gguf.u32(p.max_tokens),
        "bonsai.te.final_norm": gguf.boolean(e.final_norm),
        "bonsai.vae.latent_channels": gguf.u32(v.latent_channels),
        "bonsai.vae.decoder_widths": gguf.u32_array(v.decoder_widths),
        "bonsai.vae.layers_per_block": gguf.u32(v.layers_per_block),
        "bonsai.vae.norm_groups": gguf.u32(v.norm_groups),
        # Not a setting of the source: AutoencoderKLFlux2 builds every GroupNorm with this value.
        "bonsai.vae.norm_eps": gguf.f32(1e-6),
        "bonsai.vae.bn_eps": gguf.f32(v.bn_eps),
        "bonsai.vae.mid_attention": gguf.boolean(v.mid_attention),
        "bonsai.schedule.dynamic": gguf.boolean(s.dynamic),
        "bonsai.schedule.shift": gguf.f32(s.shift),
        "bonsai.schedule.type": gguf.string(s.type),
        "bonsai.schedule.train_steps": gguf.u32(s.train_steps),
        "bonsai.default.width": gguf.u32(p.width),
        "bonsai.default.height": gguf.u32(p.height),
        "bonsai.default.steps": gguf.u32(p.steps),
        "bonsai.default.guidance": gguf.f32(p.guidance),
        "bonsai.prompt.prefix": gguf.string(PROMPT_PREFIX),
        "bonsai.prompt.suffix": gguf.string(PROMPT_SUFFIX),
    }
    if with_encoder:
        keys["bonsai.vae.encoder_widths"] = gguf.u32_array(v.encoder_widths)
    return keys
