# SPDX-License-Identifier: Apache-2.0
"""Repeat the lossless proof for an existing model file against its source."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import blocks, floats, gguf, lowbit, stream
from . import ggml_types as types
from .errors import ConvertError
from .jsonfile import brief
from .layout import Found
from .plan import Item
from .progress import Progress
from .safetensors import Files
from .stream import Piece

# Largest relative L2 error a tensor may have and still count as what its type says. Low-bit types
# of a dense source lose most of it (ternary 0.44, binary 0.60 of Gaussian weights).
_TOLERANCE = {
    "F32": 0.0, "F16": 2e-3, "BF16": 4e-3, "Q8_0": 0.03, "Q4_0": 0.25, "Q4_1": 0.25,
    "Q1_0": 0.95, "PQ2_0": 0.9, "PTQ1_0": 0.9,
}  # fmt: skip


@dataclass
class Report:
    """Counts for the summary, and everything that is wrong."""

    packed: int = 0  # low-bit, decoded codes and scales equal
    copied: int = 0  # same type, same bytes
    lossy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        out = [
            f"{self.packed} tensors decode to the source's numbers exactly, "
            f"{self.copied} are the source's bytes"
        ]
        for name, errors in sorted(self.lossy.items()):
            out.append(
                f"{len(errors)} tensors as {name}: relative L2 error mean "
                f"{np.mean(errors):.3g}, largest {max(errors):.3g}"
            )
        return out + self.faults


@dataclass
class _Tensor:
    """Sums over the pieces of one tensor."""

    sha: object = field(default_factory=hashlib.sha256)
    exact: bool = True
    low_bit: bool = True
    error: float = 0.0
    norm: float = 0.0


def _compare(files: Files, model: Path, offset: int, piece: Piece) -> tuple:
    """(stored bytes, equal, comparable exactly, squared error, squared norm) of a piece."""
    item = piece.item
    info, entry = item.info, item.found.entry
    at = offset + piece.first * info.type.row_bytes(info.row)
    stored = files.read_bytes(model, at, piece.target_bytes)
    if item.how == "blocks" and item.exact:
        data, _ = entry.packed(files, piece.first, piece.rows, info.type)
        return stored, bool(np.array_equal(stored, data)), True, 0.0, 0.0
    if info.type in types.LOW_BIT:
        groups = entry.groups(files, piece.first, piece.rows)
        stats = groups.stats
        if not stats.bad + stats.inexact and not (info.type is types.Q1_0 and stats.mixed):
            packed = stored.reshape(-1, info.type.bytes)
            equal = lowbit.decodes_to(packed, info.type.name, groups)
            return stored, equal, True, 0.0, 0.0
    raw = stream.read(files, piece)
    if info.type.name == entry.dtype:
        return stored, bool(np.array_equal(stored, raw.view(np.uint8))), False, 0.0, 0.0
    x = floats.to_f32(raw, entry.dtype)
    difference = (blocks.decode(info.type, stored) - x).astype(np.float64)
    return stored, False, False, float(difference @ difference), float(np.vdot(x, x))


def _finish(report: Report, item: Item, t: _Tensor, hash_in_file: object) -> None:
    name, kind = item.info.name, item.info.type.name
    if t.sha.hexdigest() != hash_in_file:
        report.faults.append(f"FAULT {name}: bytes do not match the stored SHA-256; copy it again")
    if kind == item.found.entry.dtype:
        report.copied += t.exact
        if not t.exact:
            report.faults.append(f"FAULT {name}: differs from the source although both are {kind}")
    elif t.low_bit:
        report.packed += t.exact
        if not t.exact:
            report.faults.append(f"FAULT {name}: {kind} codes or scales differ from the source")
    else:
        error = (t.error / t.norm) ** 0.5 if t.norm else float(t.error > 0)
        report.lossy[kind].append(error)
        if not error <= _TOLERANCE[kind]:
            report.faults.append(
                f"FAULT {name}: relative error {error:.3g}, {kind} should stay below "
                f"{_TOLERANCE[kind]:g}: another source?"
            )


def _check_keys(model: gguf.Reader, keys: dict[str, gguf.Value], report: Report) -> None:
    for name, value in keys.items():
        found = model.keys.get(name)
        wanted = value.value
        if isinstance(wanted, float):
            wanted = float(np.float32(wanted))
        if found != wanted:
            shown = (
                "differs"
                if isinstance(wanted, list)
                else f"is {brief(found)}, expected {brief(wanted)}"
            )
            report.faults.append(f"FAULT key '{name}': {shown}")


def match_model(model: gguf.Reader, files: Files, tensors: list[Found]) -> list[Item]:
    """Items with the types of the file; names, order and shapes must be those of the source."""
    wanted = {f.expected.target: f for f in tensors}
    for name in model.tensors.keys() ^ wanted.keys():
        where = "the source has no such tensor" if name in model.tensors else "not in the file"
        raise ConvertError(f"{model.path}: tensor '{name}': {where}; made from another source?")
    items = []
    for name, stored in model.tensors.items():
        shape = wanted[name].expected.target_shape
        if stored.shape != shape:
            raise ConvertError(
                f"{model.path}: tensor '{name}' is {list(stored.shape)}, the source gives "
                f"{list(shape)}; made from another source?"
            )
        found = wanted[name]
        if stored.type.block > 1 and stored.type not in types.LOW_BIT:
            kind, exact = found.entry.stored(files)
            if kind is stored.type:
                items.append(Item(found, stored, "blocks", exact))
                continue
        items.append(Item(found, stored))
    return items


def verify(
    model: gguf.Reader, files: Files, tensors: list[Found], keys: dict[str, gguf.Value]
) -> Report:
    """Compare every tensor and key of a model file with what the source says."""
    report = Report()
    items = match_model(model, files, tensors)
    hashes = model.keys.get(gguf.HASH_KEY)
    if not isinstance(hashes, list) or len(hashes) != len(items):
        raise ConvertError(f"{model.path}: '{gguf.HASH_KEY}' is not one hash for each tensor")
    _check_keys(model, keys, report)
    by_name = dict(zip(model.tensors, hashes))

    def work(piece: Piece) -> tuple:
        return _compare(files, model.path, model.tensors[piece.item.info.name].offset, piece)

    total = sum(i.found.entry.nbytes for i in items)
    t = _Tensor()
    results = stream.in_order(work, stream.pieces(items))
    with Progress(total) as progress, closing(results):
        for piece, result in results:
            stored, exact, low_bit, error, norm = result
            t.sha.update(stored)
            t.exact, t.low_bit = t.exact and exact, t.low_bit and low_bit
            t.error, t.norm = t.error + error, t.norm + norm
            progress.advance(piece.source_bytes, piece.item.info.name)
            if piece.last:
                _finish(report, piece.item, t, by_name[piece.item.info.name])
                t = _Tensor()
    return report
