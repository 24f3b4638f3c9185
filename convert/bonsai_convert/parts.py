# SPDX-License-Identifier: Apache-2.0
"""Open one part of a checkpoint, in whatever layout it is: the bytes decide, not names of files.

A container (safetensors, .pt) gives named arrays; a layout's module turns them into tensors under
the names of the model: those of diffusers for transformer and VAE, those of transformers
('model.layers.0...') for the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from . import (
    config,
    foreign_gguf,
    fp8,
    gemlite,
    gguf,
    hqq,
    mlx,
    rename,
    safetensors,
    torchfile,
)
from .errors import ConvertError
from .safetensors import Entry
from .tensor import Tensor
from .torchfile import TorchFile

KINDS = ("transformer", "text_encoder", "vae")
STEMS = {
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
_INDEX = ".safetensors.index.json"
# A name that a part of this kind has, whatever its layout.
_MARKS = {
    "transformer": ("x_embedder.", "img_in."),
    "text_encoder": ("embed_tokens.", "token_embd."),
    "vae": ("decoder.conv_in.",),
}


@dataclass
class Part:
    """The tensors of one component under the names of the model."""

    layout: str  # for people
    where: Path  # for messages
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def kind_of(names: Iterable[str]) -> str | None:
    """Which part these tensors are, with any prefix before their names."""
    names = list(names)
    for kind, marks in _MARKS.items():
        if any(f".{mark}" in f".{name}" for name in names for mark in marks):
            return kind
    return None


def _visible(folder: Path, suffix: str) -> list[Path]:
    """Files with this ending, without the '._x' that macOS puts into archives."""
    try:
        return sorted(
            p for p in folder.iterdir()
            if p.name.endswith(suffix) and not p.name.startswith(".") and p.is_file()
        )  # fmt: skip
    except OSError as e:
        raise ConvertError(f"{folder}: cannot be read: {e.strerror}") from e


def _torch_file(folder: Path) -> Path | None:
    """The .pt file of a folder that holds no safetensors."""
    if _visible(folder, ".safetensors") or _visible(folder, _INDEX):
        return None
    found = _visible(folder, ".pt")
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ConvertError(f"{folder}: {len(found)} .pt files ({names}), expected one")
    if found and not _starts_with(found[0], torchfile.MAGIC):
        raise ConvertError(
            f"{found[0]}: no ZIP archive, so not written by torch 1.6 or later; save it again "
            "with a newer one, or as safetensors"
        )
    return found[0] if found else None


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with open(path, "rb", opener=config.jsonfile.open_regular) as f:
            return f.read(len(magic)) == magic
    except OSError as e:
        raise ConvertError(f"{path}: cannot be read: {e.strerror}") from e


def _stem(folder: Path, kind: str) -> str:
    """The usual name of the weights, or that of the only ones there."""
    stem = STEMS[kind]
    there = {p.name.removesuffix(_INDEX) for p in _visible(folder, _INDEX)}
    there |= {p.name.removesuffix(".safetensors") for p in _visible(folder, ".safetensors")}
    return stem if stem in there or len(there) != 1 else there.pop()


def is_gguf(path: Path) -> bool:
    return path.is_file() and _starts_with(path, gguf.MAGIC)


Container = Union[dict[str, Entry], TorchFile, gguf.Reader]


def open_container(kind: str, path: Path) -> Container:
    """Named arrays of a file, or of a folder with one checkpoint in it."""
    if path.is_dir():
        file = _torch_file(path)
        if file is None:
            return safetensors.open_component(path, _stem(path, kind))
        return torchfile.read(file)
    if _starts_with(path, torchfile.MAGIC):
        return torchfile.read(path)
    if is_gguf(path):
        return gguf.Reader(path)
    return safetensors.read_header(path)


def _said(path: Path, key: str | None = None) -> tuple[int | None, int | None]:
    """(bits, group) that a settings file gives, or (None, None)."""
    if not path.is_file():
        return None, None
    s = config.Settings(path)
    data = s.data if key is None else s.data.get(key)
    if data is None:
        return None, None
    if not isinstance(data, dict):
        raise s.fail(key, "an object")
    bits, group = data.get("bits"), data.get("group_size")
    if type(bits) is not int or type(group) is not int:
        raise ConvertError(f"{path}: 'bits' and 'group_size' are expected to be whole numbers")
    return bits, group


def quantization_settings(path: Path) -> tuple[int | None, int | None]:
    """(bits, group) of the settings beside the weights at `path`, a file or a folder."""
    folder = path if path.is_dir() else path.parent
    for name, key in (
        ("quantization_config.json", None),
        ("config.json", "quantization"),
        ("config.json", "quantization_config"),
    ):
        said = _said(folder / name, key)
        if said != (None, None):
            return said
    return None, None


def _claim_mlx(kind: str, path: Path, entries: dict[str, Entry]) -> Part | None:
    if not mlx.is_mlx(entries):
        return None
    return Part("MLX", path, mlx.tensors(kind, entries, quantization_settings(path)))


def _claim_renamed(kind: str, path: Path, entries: dict[str, Entry]) -> Part | None:
    """Single files of BFL and ComfyUI: other names, prefixes, 8-bit floats."""
    tensors = rename.select(kind, entries, path)
    if tensors is None:
        return None
    layout = "safetensors"
    if fp8.is_fp8(tensors):
        tensors, layout = fp8.combine(tensors), "safetensors, 8-bit floats"
    whose, tensors = rename.to_model_names(kind, tensors)
    return Part(layout + (f", {whose}" if whose else ""), path, tensors)


def _claim_plain(kind: str, path: Path, entries: dict[str, Entry]) -> Part:
    return Part("safetensors", path, dict(entries))


def _claim_gguf(kind: str, path: Path, content: gguf.Reader) -> Part:
    return Part(*foreign_gguf.open_tensors(kind, path, content))


def _claim_gemlite(kind: str, path: Path, content: TorchFile) -> Part | None:
    if not gemlite.is_gemlite(content.entries):
        return None
    tensors = gemlite.tensors(content.entries)
    bits, group = quantization_settings(path)
    for t in tensors.values():
        packed = isinstance(t, gemlite.GemliteTensor)
        if packed and bits is not None and (t.bits, t.group) != (bits, group):
            raise ConvertError(
                f"{t.where}: {t.bits} bits in groups of {t.group} by its metadata, {bits} in "
                f"groups of {group} by quantization_config.json; download both again"
            )
    return Part("gemlite", path, tensors)


def _claim_hqq(kind: str, path: Path, content: TorchFile) -> Part | None:
    if not hqq.is_hqq(content.entries, content.values):
        return None
    return Part("HQQ", path, hqq.tensors(content.entries, content.values))


def _claim_state_dict(kind: str, path: Path, content: TorchFile) -> Part:
    return Part("state dict", path, dict(content.entries))


Claim = Callable[[str, Path, object], "Part | None"]
# For each container the layouts in the order in which they are tried; the last takes what is left.
LAYOUTS: dict[str, list[Claim]] = {
    "safetensors": [_claim_mlx, _claim_renamed, _claim_plain],
    "torch": [_claim_gemlite, _claim_hqq, _claim_state_dict],
    "gguf": [_claim_gguf],
}


def open_part(kind: str, path: Path) -> Part:
    """One component, from a folder or a file."""
    content = open_container(kind, path)
    container = "torch" if isinstance(content, TorchFile) else "safetensors"
    if isinstance(content, gguf.Reader):
        container = "gguf"
    return next(p for claim in LAYOUTS[container] if (p := claim(kind, path, content)) is not None)
