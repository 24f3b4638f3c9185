# SPDX-License-Identifier: Apache-2.0
"""A checkpoint put together from a transformer, a text encoder and a VAE that lie anywhere.

Single files carry no settings: sizes come from the shapes of their tensors, what shapes do not say
(rotary bases, epsilons, schedule) is klein's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from . import config, gguf, parts
from . import source as source_module
from .config import Derived, Settings
from .errors import ConvertError, UsageError
from .jsonfile import is_plain
from .names import count
from .parts import Part
from .places import Places
from .source import Source
from .tensor import Tensor

_CLASSES = {
    "transformer": ("_class_name", "Flux2Transformer2DModel"),
    "text_encoder": ("model_type", "qwen3"),
    "vae": ("_class_name", "AutoencoderKLFlux2"),
}


@dataclass(frozen=True)
class Given:
    """What the command line names beside SOURCE; `base`: a single-file transformer is the
    undistilled one."""

    parts: dict[str, Path]
    tokenizer: Path | None
    base: bool


class _Shapes:
    """Shapes of a part by name; an absent tensor is an error that names it."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self.tensor(name).shape

    def tensor(self, name: str) -> Tensor:
        t = self.part.tensors.get(name)
        if t is None:
            raise ConvertError(
                f"{self.part.where}: tensor '{name}' missing; this is no complete part of a FLUX.2 "
                "klein checkpoint, or its names are not known here"
            )
        return t

    def matrix(self, name: str) -> tuple[int, int]:
        t = self.tensor(name)
        if len(t.shape) != 2:
            raise ConvertError(f"{t.where}: {list(t.shape)}, expected a matrix")
        return t.shape


def _divided(part: Part, what: str, a: int, b: int) -> int:
    if b < 1 or a % b:
        raise ConvertError(f"{part.where}: {what}: {a} is no multiple of {b}")
    return a // b


def transformer_settings(part: Part) -> dict:
    s = _Shapes(part)
    width, channels = s.matrix("x_embedder.weight")
    head = s["transformer_blocks.0.attn.norm_q.weight"][-1]
    mlp = s.matrix("transformer_blocks.0.ff.linear_out.weight")[1]
    return {
        "_class_name": "Flux2Transformer2DModel",
        "in_channels": channels,
        "num_layers": count(part.tensors, "transformer_blocks."),
        "num_single_layers": count(part.tensors, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": _divided(part, "width and head", width, head),
        "joint_attention_dim": s.matrix("context_embedder.weight")[1],
        "mlp_ratio": mlp / width,
        "axes_dims_rope": [_divided(part, "head and axes", head, 4)] * 4,
        "timestep_guidance_channels": s.matrix(
            "time_guidance_embed.timestep_embedder.linear_1.weight"
        )[1],
    }


def text_settings(part: Part, keys: dict[str, object]) -> dict:
    """`keys` are those of a GGUF file, which say a little more than shapes do."""
    s = _Shapes(part)
    start = "" if "embed_tokens.weight" in part.tensors else "model."
    block = f"{start}layers.0."
    vocab, width = s.matrix(f"{start}embed_tokens.weight")
    head = s[f"{block}self_attn.q_norm.weight"][-1]
    q, k = (s.matrix(f"{block}self_attn.{n}_proj.weight")[0] for n in "qk")
    theta = keys.get("qwen3.rope.freq_base", 1e6)
    eps = keys.get("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    return {
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": count(part.tensors, f"{start}layers."),
        "num_attention_heads": _divided(part, "queries and head", q, head),
        "num_key_value_heads": _divided(part, "keys and head", k, head),
        "head_dim": head,
        "intermediate_size": s.matrix(f"{block}mlp.gate_proj.weight")[0],
        "rms_norm_eps": float(f"{eps:.6g}") if type(eps) is float else eps,
        "rope_theta": theta,
    }


def vae_settings(part: Part) -> dict:
    s = _Shapes(part)
    ups = count(part.tensors, "decoder.up_blocks.")
    decoder = [s[f"decoder.up_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(ups)]
    settings = {
        "_class_name": "AutoencoderKLFlux2",
        "latent_channels": s["post_quant_conv.weight"][0],
        "block_out_channels": decoder[::-1],
        "layers_per_block": count(part.tensors, "decoder.up_blocks.0.resnets.") - 1,
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in part.tensors,
    }
    downs = count(part.tensors, "encoder.down_blocks.")
    if downs:
        encoder = [s[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(downs)]
        if encoder != decoder[::-1]:  # FLUX.2-small-decoder
            settings["decoder_block_out_channels"] = decoder[::-1]
        settings["block_out_channels"] = encoder
    return settings


def _written_settings(kind: str, path: Path) -> Path | None:
    """config.json beside the weights, if it is of this part."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    key, value = _CLASSES[kind]
    return file if file.is_file() and Settings(file).data.get(key) == value else None


def _find_tokenizer(encoder: Path) -> Path:
    """A folder with tokenizer.json, or the encoder itself if it holds the vocabulary."""
    if parts.is_gguf(encoder) and "tokenizer.ggml.tokens" in gguf.Reader(encoder).keys:
        return encoder
    folder = encoder if encoder.is_dir() else encoder.parent
    for candidate in (folder, folder / "tokenizer", folder.parent / "tokenizer"):
        if (candidate / "tokenizer.json").is_file():
            return candidate
    raise ConvertError(
        f"{encoder}: no tokenizer in it or beside it; give --tokenizer: the folder of Qwen3's "
        "tokenizer.json and tokenizer_config.json, or a GGUF file of Qwen3-4B"
    )


def _settings(kind: str, path: Path) -> Path | dict:
    written = _written_settings(kind, path)
    if written is not None:
        return written
    part = parts.open_part(kind, path)
    if kind == "transformer":
        found = transformer_settings(part)
    elif kind == "vae":
        found = vae_settings(part)
    else:
        found = text_settings(part, gguf.Reader(path).keys if parts.is_gguf(path) else {})
    return Derived(found, path)


def _find(given: Given, source: Places | None) -> Places:
    """Places and settings of the parts that are given, the others from the source."""
    where = dict(source.parts) if source else {}
    notes = list(source.notes) if source else []
    settings: dict[str, Path | dict] = dict(source.settings) if source else {
        "model_index": {"_class_name": "Flux2KleinPipeline", "is_distilled": not given.base},
        "scheduler": config.KLEIN_SCHEDULER,
    }  # fmt: skip
    for kind, path in given.parts.items():
        where[kind] = path
        settings[kind] = _settings(kind, path)
    if source is None and not given.base:
        notes.append(
            "taken as distilled klein (4 steps, no guidance); --base if it is FLUX.2 klein base"
        )
    place = given.tokenizer
    if place is not None and place.name == "tokenizer.json":
        place = place.parent
    if place is None and source and "text_encoder" not in given.parts:
        place = source.tokenizer
    return Places(where, place or _find_tokenizer(where["text_encoder"]), settings, tuple(notes))


def with_parts(source: Source, given: Given) -> Source:
    """A source with the parts that are given in the place of its own."""
    if not given.parts and given.tokenizer is None:
        return source
    return replace(source, places=_find(given, source.places))


def open_source(source: str | None, revision: str | None, given: Given) -> Source:
    """A checkpoint in one place, in which other parts may be put, or one made of parts."""
    if source is not None:
        if given.base:
            raise UsageError("--base belongs to single files: SOURCE says itself what it is")
        return with_parts(source_module.open_source(source, revision), given)
    if revision is not None:
        raise UsageError("--revision belongs to Hub ids")
    # Names on the disk may hold anything; the file's keys are text of one line.
    label = [
        "".join(c if is_plain(c) else "?" for c in p.resolve().name) for p in given.parts.values()
    ]
    root = given.parts["transformer"]
    return Source(root, root.stem if is_plain(root.stem) else label[0], " + ".join(label),
                  _find(given, None))  # fmt: skip
