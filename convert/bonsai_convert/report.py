# SPDX-License-Identifier: Apache-2.0
"""What became of every tensor: formats, sizes, errors; as a table and as JSON."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConvertError
from .plan import Item, Plan
from .progress import size_text
from .stream import Encoded

_PARTS = {"te": "text encoder", "dit": "transformer", "vae": "vae"}
_NAMED = 24  # lines of tensors that are not exact; the JSON has all


@dataclass
class Row:
    """One tensor, or several of one kind added up."""

    count: int = 0
    weights: int = 0
    before: int = 0  # bytes in the source
    after: int = 0
    zeros: int = 0
    max_error: float = 0.0
    square_error: float = 0.0
    square_norm: float = 0.0

    def add_tensor(self, item: Item) -> None:
        self.count += 1
        self.weights += item.info.rows * item.info.row
        self.before += item.found.entry.nbytes
        self.after += item.info.nbytes

    def add_piece(self, e: Encoded) -> None:
        self.zeros += e.zeros
        self.max_error = max(self.max_error, e.max_error)
        self.square_error += e.square_error
        self.square_norm += e.square_norm

    def add(self, other: Row) -> None:
        for name in ("count", "weights", "before", "after", "zeros", "square_error", "square_norm"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_error = max(self.max_error, other.max_error)

    @property
    def relative_error(self) -> float:
        """L2 norm of the differences over that of the weights."""
        return (self.square_error / self.square_norm) ** 0.5 if self.square_norm else 0.0

    @property
    def bits(self) -> float:
        return 8 * self.after / max(self.weights, 1)

    @property
    def zero_part(self) -> float:
        return self.zeros / max(self.weights, 1)


def _pattern(name: str) -> str:
    """The name with its block numbers taken out, to put alike tensors into one line."""
    return re.sub(r"\.\d+\.", ".*.", name)


@dataclass
class Report:
    """Filled while the model is written, tensor by tensor in the order of the file."""

    plan: Plan
    notes: list[str]
    strict: bool = False
    rows: dict[str, Row] = field(default_factory=dict)

    def piece(self, item: Item, encoded: Encoded, last: bool) -> None:
        row = self.rows.get(item.info.name)
        if row is None:
            row = self.rows[item.info.name] = Row()
            row.add_tensor(item)
        row.add_piece(encoded)
        if last and self.strict and row.max_error:
            raise not_exact(item, f"largest error {row.max_error:.3g}")

    def _grouped(self, key) -> dict[tuple, Row]:
        found: dict[tuple, Row] = defaultdict(Row)
        for item in self.plan.items:
            found[key(item)].add(self.rows[item.info.name])
        return found

    def lines(self, total: int) -> list[str]:
        """The table, and every tensor that is not exact, alike ones of all blocks in one line."""
        head = (
            f"{'':13s}{'tensors':>7s}  {'source':16s} {'':>9s}    {'stored':6s} {'':>9s} "
            f"{'bits':>6s} {'zeros':>6s}  largest error"
        )
        lines = [head]
        groups = self._grouped(
            lambda i: (i.info.name.split(".")[0], i.found.entry.format, i.info.type.name)
        )
        for (part, source, target), r in groups.items():
            error = f"{r.max_error:.3g}, L2 {r.relative_error:.2g}" if r.max_error else "exact"
            lines.append(
                f"{_PARTS[part]:13s}{r.count:7d}  {source:16s} {size_text(r.before):>9s} -> "
                f"{target:6s} {size_text(r.after):>9s} {r.bits:6.3f} {r.zero_part:6.1%}  {error}"
            )
        count = len(self.plan.items)
        lines.append(f"{self.plan.variant} model, {count} tensors, {size_text(total)} ({total} B)")
        lines += self._inexact()
        return lines + [f"note: {n}" for n in self.notes]

    def _inexact(self) -> list[str]:
        groups = self._grouped(
            lambda i: (_pattern(i.info.name), i.found.entry.format, i.info.type.name)
        )
        bad = [(key, r) for key, r in groups.items() if r.max_error]
        if not bad:
            return ["every tensor equals its source"]
        lines = [f"{sum(r.count for _, r in bad)} tensors are not exact:"]
        bad.sort(key=lambda b: -b[1].relative_error)
        for (name, source, target), r in bad[:_NAMED]:
            lines.append(
                f"  {name} ({r.count}) {source} -> {target}: largest error {r.max_error:.3g}, "
                f"L2 {r.relative_error:.2g}"
            )
        if len(bad) > _NAMED:
            lines.append(f"  and {len(bad) - _NAMED} more kinds of tensors; --report has them all")
        return lines

    def as_dict(self) -> dict:
        return {
            "variant": self.plan.variant,
            "exact": not any(r.max_error for r in self.rows.values()),
            "notes": self.notes,
            "tensors": [self._tensor(item) for item in self.plan.items],
        }

    def _tensor(self, item: Item) -> dict:
        r = self.rows[item.info.name]
        return {
            "name": item.info.name,
            "source": item.found.entry.name,
            "source_format": item.found.entry.format,
            "source_bytes": r.before,
            "type": item.info.type.name,
            "shape": list(item.info.shape),
            "bytes": r.after,
            "bits_per_weight": r.bits,
            "zero_fraction": r.zero_part,
            "exact": r.max_error == 0,
            "max_error": r.max_error,
            "relative_error": r.relative_error,
        }

    def write(self, path: Path, about: dict[str, str]) -> None:
        path.write_text(json.dumps(about | self.as_dict(), indent=1) + "\n", encoding="utf-8")


def not_exact(item: Item, how: str) -> ConvertError:
    """What --strict says."""
    return ConvertError(
        f"{item.found.entry.where} is {item.found.entry.format}, which {item.info.type.name} does "
        f"not hold exactly ({how}); leave --strict out to accept that, or choose a larger type"
    )


def refuse_inexact(plan: Plan) -> None:
    """--strict, before anything is written: what is known to be lossy."""
    for item in plan.items:
        if item.how == "blocks" and not item.exact:
            raise not_exact(item, "its scales or offsets are no fp16 numbers")


def plan_lines(plan: Plan, notes: list[str], total: int) -> list[str]:
    """Tensors, types and bytes of each part, for --dry-run."""
    groups: dict[tuple, Row] = defaultdict(Row)
    sizes: dict[str, int] = defaultdict(int)
    for item in plan.items:
        part = item.info.name.split(".")[0]
        sizes[part] += item.info.nbytes
        groups[part, item.found.entry.format, item.info.type.name].add_tensor(item)
    lines = []
    for part, label in _PARTS.items():
        lines.append(f"{label}: {size_text(sizes[part])}")
        for (where, source, target), r in sorted(groups.items()):
            if where == part:
                lines.append(
                    f"  {r.count:4d} tensors  {source:4s} {size_text(r.before):>10s} -> "
                    f"{target:6s} {size_text(r.after):>10s}"
                )
    lines.append(f"{plan.variant} model, {len(plan.items)} tensors, {size_text(total)} ({total} B)")
    return lines + [f"note: {n}" for n in notes]
