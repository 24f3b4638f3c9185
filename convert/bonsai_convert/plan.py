# SPDX-License-Identifier: Apache-2.0
"""Decide the stored type of every tensor before anything is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import ggml_types as types
from . import lowbit
from .blocks import GROUP
from .errors import ConvertError
from .ggml_types import TensorType
from .gguf import TensorInfo
from .layout import Found
from .safetensors import Files

# Kept in 16 bits under --aux q8: they are tiny, and every pixel passes through them.
_ALWAYS_16_BIT = ("dit.x_embedder.weight", "dit.proj_out.weight")
# Under --text-encoder q4 the embedding gets 8 bits: its error enters every layer, while at run time
# only the rows of the prompt are read. FORMAT.md has the figures.
_EMBEDDING = "te.token_embd.weight"
_TARGETS = {"f16": types.F16, "bf16": types.BF16, "q8": types.Q8_0, "q4": types.Q4_0}
_SAMPLE_ROWS = 32
_CHUNK = 1 << 20  # elements read at once while looking at a whole tensor


@dataclass(frozen=True)
class Choices:
    """What the command line asks for; see convert.py --help."""

    weights: str = "keep"
    packing: str = "ptq1_0"
    text_encoder: str = "keep"
    aux: str = "keep"
    vae: str = "keep"


@dataclass(frozen=True)
class Item:
    """One tensor to store.

    how: 'groups' low-bit codes and scales, proved equal to the source; 'blocks' as the source's
         layout packs itself; 'values' its numbers, in the source's type or another
    exact: known beforehand to lose nothing
    """

    found: Found
    info: TensorInfo
    how: str = "values"
    exact: bool = False


@dataclass(frozen=True)
class Plan:
    items: list[Item]
    variant: str  # 'ternary', 'binary' or 'dense'
    notes: list[str]

    @property
    def data_bytes(self) -> int:
        return sum(i.info.nbytes for i in self.items)


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]


def look(files: Files, found: Found, whole: bool) -> lowbit.GroupStats:
    """Statistics of the groups of a block linear: of some rows spread over it, or of all."""
    rows, k = rows_and_columns(found.expected.shape)
    stats = lowbit.GroupStats()
    if k % GROUP:
        return lowbit.GroupStats(groups=1, bad=1, first_bad=0)
    if whole:
        step = max(1, _CHUNK // k)
        pieces = ((r, min(step, rows - r)) for r in range(0, rows, step))
    else:
        pieces = found.entry.sample(_SAMPLE_ROWS)
    for row, count in pieces:
        stats.add(found.entry.groups(files, row, count).stats)
    return stats


def _describe(found: Found, stats: lowbit.GroupStats, wanted: str) -> str:
    """'tensor X of FILE: n of N groups ...' with the first offender's row and group."""
    k = found.expected.shape[-1]
    where = f"{found.entry.path}: tensor '{found.entry.name}'"
    if k % GROUP:
        return f"{where}: {k} columns, not a multiple of {GROUP}, so it has no {wanted} groups"
    if stats.bad + stats.inexact == 0:
        return f"{where}: {stats.mixed} of {stats.groups} groups mix zeros and non-zeros"
    per_row = k // GROUP
    row, group = divmod(stats.first_bad, per_row)
    return (
        f"{where}: {stats.bad} of {stats.groups} groups hold more than one magnitude and "
        f"{stats.inexact} a scale that is no fp16 number, the first in row {row}, group {group}"
    )


def find_kinds(files: Files, blocks: list[Found], whole: bool) -> dict[str, str]:
    """Kind of each block linear by name: 'ternary', 'binary', 'zero', 'damaged' or 'dense'."""
    return {f.expected.target: look(files, f, whole).kind for f in blocks}


def _low_bit_type(kind: str, packing: str) -> TensorType:
    return types.Q1_0 if kind == "binary" else types.BY_NAME[packing.upper()]


class _Planner:
    def __init__(self, files: Files, choices: Choices, blocks: list[Found], whole: bool) -> None:
        self.files, self.choices = files, choices
        self.kinds = {}
        if choices.weights in ("keep", "ternary", "binary"):
            self.kinds = find_kinds(files, blocks, whole)
        counts = Counter(self.kinds.values())
        self.low_bit = counts["ternary"] + counts["binary"] + counts["damaged"] > 0
        self.variant = self._variant(counts)
        self.notes: list[str] = []
        dense = counts["dense"]
        if self.low_bit and dense and choices.weights == "keep":
            self.notes.append(
                f"{dense} of {len(blocks)} block linears are not low-bit and keep their source "
                f"type, among them {next(n for n, k in self.kinds.items() if k == 'dense')}"
            )

    def _variant(self, counts: Counter) -> str:
        if self.choices.weights in ("ternary", "binary"):
            return self.choices.weights
        if counts["ternary"] or counts["damaged"]:
            return "ternary"
        return "binary" if counts["binary"] else "dense"

    def _block(self, found: Found) -> Item:
        wanted = self.choices.weights
        if wanted in ("f16", "q8"):
            return self._as(found, types.F16 if wanted == "f16" else types.Q8_0)
        kind = self.kinds[found.expected.target]
        if kind == "zero":
            kind = self.variant
        if kind == "damaged" or (self.low_bit and wanted != "keep" and kind == "dense"):
            stats = look(self.files, found, whole=True)
            raise ConvertError(
                f"{_describe(found, stats, self.variant)}; the other block linears are low-bit, "
                "so this file is damaged or was saved again through other numbers: download it "
                "again, or store what is there with --weights f16"
            )
        if wanted == "keep":
            if kind == "dense":
                return self._kept(found)
            return _item(found, _low_bit_type(kind, self.choices.packing), "groups", True)
        if kind == "ternary" and wanted == "binary":
            stats = look(self.files, found, whole=True)
            raise ConvertError(
                f"{_describe(found, stats, wanted)}, so it is ternary and cannot be stored as "
                "binary without loss; leave --weights out"
            )
        # Binary weights are ternary ones that never are zero: packing them so loses nothing.
        target = _low_bit_type(wanted, self.choices.packing)
        if kind in ("ternary", "binary"):
            return _item(found, target, "groups", True)
        return _item(found, target)

    def _kept(self, found: Found) -> Item:
        """In the type that the source's layout says holds it best."""
        target, exact = found.entry.stored(self.files)
        if found.expected.target_shape[-1] % target.block:
            return _item(found, types.F16)
        return _item(found, target, "blocks" if target.block > 1 else "values", exact)

    def _as(self, found: Found, target: TensorType) -> Item:
        """In a given type; what the source already has in it is taken over."""
        if target.name == found.entry.dtype:
            return _item(found, target, exact=True)
        if target.block > 1 and found.entry.stored(self.files)[0] is target:
            return self._kept(found)
        return _item(found, target)

    def item(self, found: Found) -> Item:
        role, c = found.expected.role, self.choices
        if role == "vector":
            return self._kept(found)
        if role == "block":
            return self._block(found)
        choice = {"aux": c.aux, "text": c.text_encoder, "vae": c.vae}[role]
        if choice == "keep":
            return self._kept(found)
        target = _TARGETS[choice]
        if choice == "q4" and found.entry.stored(self.files)[0] in (types.Q4_0, types.Q4_1):
            return self._kept(found)  # 4 bits already: other ones would only add an error
        if target is types.Q4_0 and found.expected.target == _EMBEDDING:
            target = types.Q8_0
        if found.expected.target_shape[-1] % target.block:
            target = types.F16
        if target is types.Q8_0 and found.expected.target in _ALWAYS_16_BIT:
            target = types.F16
        return self._as(found, target)


def _item(found: Found, kind: TensorType, how: str = "values", exact: bool = False) -> Item:
    e, info = found.expected, None
    if e.target_shape[-1] % kind.block == 0:
        info = TensorInfo(e.target, e.target_shape, kind)
    if info is None:
        raise ConvertError(
            f"{found.entry.path}: tensor '{found.entry.name}' {list(e.shape)}: {kind.name} needs "
            f"columns in multiples of {kind.block}; choose another --weights"
        )
    return Item(found, info, how, exact)


def make_plan(files: Files, tensors: list[Found], choices: Choices, whole: bool = False) -> Plan:
    """Types for all tensors. Kinds come from a sample of rows unless `whole` is set: conversion
    proves every group anyway, and asks for another plan where the sample was wrong."""
    blocks = [f for f in tensors if f.expected.role == "block"]
    planner = _Planner(files, choices, blocks, whole)
    return Plan([planner.item(f) for f in tensors], planner.variant, planner.notes)
