# SPDX-License-Identifier: Apache-2.0
"""Turn the tensors of one part, under anybody's names, into tensors under the model's names.

Works on any layout whose matrices can be read by rows: names.py says what is what, `Stacked` and
`Reshaped` give the rows another order or shape without touching the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import lowbit, names
from .errors import ConvertError
from .ggml_types import TensorType
from .safetensors import Files
from .tensor import Stacked, Tensor

# A name in each form of each part, and what only files of other programs put before it.
_MARKS = {
    "transformer": ("img_in.weight", "x_embedder.weight"),
    "text_encoder": ("token_embd.weight", "model.embed_tokens.weight", "embed_tokens.weight"),
    "vae": ("decoder.conv_in.weight",),
}
_VAE_1X1 = (".conv_shortcut.weight", "quant_conv.weight")  # in model files: matrices


@dataclass(frozen=True)
class Reshaped(Tensor):
    """The same values in another shape with as many rows: a 1x1 convolution as a matrix."""

    inner: Tensor
    shape: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    @property
    def format(self) -> str:
        return self.inner.format

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        return self.inner.raw(files, first, rows)

    def groups(self, files: Files, first: int, rows: int) -> lowbit.Groups:
        return self.inner.groups(files, first, rows)

    def stored(self, files: Files) -> tuple[TensorType, bool]:
        return self.inner.stored(files)

    def blocks(self, files: Files, first: int, rows: int) -> np.ndarray:
        return self.inner.blocks(files, first, rows)


@dataclass(frozen=True)
class Unrolled(Reshaped):
    """A convolution stored [Cout, kh, kw, Cin], as [Cout, Cin, kh, kw]."""

    def raw(self, files: Files, first: int, rows: int) -> np.ndarray:
        out, inp, h, w = self.shape
        raw = self.inner.raw(files, 0, self.inner.rows).reshape(out, h, w, inp)
        return np.ascontiguousarray(raw.transpose(0, 3, 1, 2)).reshape(-1)


def convolutions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The VAE with its convolutions in PyTorch's order."""
    result = {}
    for name, t in tensors.items():
        if len(t.shape) == 4:
            out, h, w, inp = t.shape
            t = Unrolled(t, (out, inp, h, w))
        elif len(t.shape) == 2 and name.endswith(_VAE_1X1):
            t = Reshaped(t, (*t.shape, 1, 1))
        result[name] = t
    return result


def find_prefix(kind: str, there: Iterable[str], path: Path) -> str | None:
    """What stands before all names of this part; None when the part is not there."""
    there = list(there)
    for mark in _MARKS[kind]:
        found = {n[: -len(mark)] for n in there if n == mark or n.endswith("." + mark)}
        if kind == "vae":  # 'taef2.decoder...' and the like stand beside a VAE
            found = {p for p in found if p in ("", "vae.", "first_stage_model.")} or found
        if len(found) > 1:
            raise ConvertError(
                f"{path}: {len(found)} tensors end in '{mark}' ({', '.join(sorted(found))}); which "
                f"of them is the {kind.replace('_', ' ')} cannot be told"
            )
        if found:
            return found.pop()
    return None


def select(kind: str, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor] | None:
    """The tensors of this part without what stands before their names."""
    prefix = find_prefix(kind, tensors, path)
    if prefix is None:
        return None
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _third(t: Tensor, index: int, name: str) -> Tensor:
    if t.rows % 3 or len(t.shape) != 2:
        raise ConvertError(f"{t.where}: {list(t.shape)}, expected q, k and v of equal height")
    rows = t.rows // 3
    return Stacked(name, ((t, index * rows, rows),))


def _swapped(t: Tensor) -> Tensor:
    """(shift, scale) rows as (scale, shift)."""
    if t.rows % 2 or len(t.shape) != 2:
        raise ConvertError(f"{t.where}: {list(t.shape)}, expected a shift and a scale")
    half = t.rows // 2
    return Stacked(t.name, ((t, half, half), (t, 0, half)))


def is_bfl(tensors: dict[str, Tensor]) -> bool:
    return "img_in.weight" in tensors


def transformer_from_bfl(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names that BFL's files do not have are kept, so that they are reported as unknown."""
    if "guidance_in.in_layer.weight" in tensors:
        where = tensors["guidance_in.in_layer.weight"].path
        raise ConvertError(
            f"{where}: has a guidance embedding, so it is FLUX.2 dev; this engine draws with klein"
        )
    # Some exports call the gain of a norm 'weight'.
    left = {n[:-7] + ".scale" if n.endswith("_norm.weight") else n: t for n, t in tensors.items()}
    result: dict[str, Tensor] = {}
    doubles, singles = (names.count(left, k) for k in ("double_blocks.", "single_blocks."))
    for rule in names.transformer_rules(doubles, singles):
        t = left.pop(rule.bfl, None)
        if t is None:
            continue  # named as missing when the part is matched with its settings
        if rule.op == "stack":
            for i, name in enumerate(rule.diffusers):
                result[name] = _third(t, i, t.name)
        else:
            result[rule.diffusers[0]] = _swapped(t) if rule.op == "swap" else t
    return result | left


def is_ldm(tensors: dict[str, Tensor]) -> bool:
    return any(".mid.block_1." in n for n in tensors)


def vae_from_ldm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    levels = names.count(tensors, "decoder.up.")
    result = {}
    for name, t in tensors.items():
        ours = names.vae_from_ldm(name, levels) or name
        if ".attentions.0.to_" in ours and len(t.shape) == 4 and t.shape[2:] == (1, 1):
            t = Reshaped(t, t.shape[:2])
        result[ours] = t
    return result


def is_llama(tensors: dict[str, Tensor]) -> bool:
    return "token_embd.weight" in tensors


def text_from_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {names.text_from_llama(n) or n: t for n, t in tensors.items()}


def to_model_names(kind: str, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """(whose names these are, the tensors under those of the model)."""
    if kind == "transformer" and is_bfl(tensors):
        return "BFL names", transformer_from_bfl(tensors)
    if kind == "vae" and is_ldm(tensors):
        return "latent-diffusion names", vae_from_ldm(tensors)
    if kind == "text_encoder" and is_llama(tensors):
        return "llama.cpp names", text_from_llama(tensors)
    return "", tensors
