# SPDX-License-Identifier: Apache-2.0
"""Results as tables (Markdown, CSV) and as a contact sheet."""

import csv
import json
import textwrap
from dataclasses import dataclass

import checker
import numpy as np
import world
from PIL import Image, ImageDraw, ImageFont

TILE, EDGE, LINE = 160, 4, 15  # contact sheet, pixels
GOOD, BAD, PLAIN = (40, 160, 70), (210, 50, 40), (200, 200, 200)


@dataclass
class Result:
    """One model with one group of settings, over the prompt list."""

    model: str
    variant: str
    device: str
    precision: str
    entries: list
    verdicts: list
    control: list  # verdicts of each picture against another prompt of its category
    seconds: float  # median of a picture
    reference: float | None = None  # mean PSNR to reference pictures, dB

    def share(self, criterion, category=None, control=False):
        """Percent of the pictures for which `criterion` holds."""
        verdicts = self.control if control else self.verdicts
        hits = [
            getattr(v, criterion)
            for e, v in zip(self.entries, verdicts, strict=True)
            if category in (None, e.category)
        ]
        return 100.0 * sum(hits) / len(hits) if hits else None

    def psnr(self):
        return float(np.median([v.psnr for v in self.verdicts]))


def retention(result, results):
    """Percent of what the dense model follows, drawn the same way; None without such a run."""
    for r in results:
        same = (r.device, r.precision) == (result.device, result.precision)
        if r.variant == "dense" and same and r.share("followed"):
            return 100.0 * result.share("followed") / r.share("followed")
    return None


def rows(results):
    """One flat dict for each result, the columns of the CSV file."""
    out = []
    for r in results:
        row = {"model": r.model, "variant": r.variant, "device": r.device}
        row |= {"precision": r.precision, "prompts": len(r.entries)}
        row |= {"followed": r.share("followed"), "retention": retention(r, results)}
        row |= {c: r.share("followed", c) for c in world.CATEGORIES}
        row |= {f"{c} ok": r.share(c) for c in checker.CRITERIA}
        row |= {"single identity": r.share("identity", "single")}
        row |= {"clean": r.share("clean"), "psnr": r.psnr(), "reference psnr": r.reference}
        row |= {"control followed": r.share("followed", control=True)}
        row |= {f"control {c}": r.share(c, control=True) for c in checker.CRITERIA}
        row |= {"seconds": r.seconds}
        out.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    return out


def _table(columns, table):
    def cell(value):
        return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in table:
        lines.append("| " + " | ".join(cell(row[key]) for _, key in columns) + " |")
    return "\n".join(lines)


def markdown(results):
    """The report; percentages unless a unit stands beside them."""
    table = rows(results)
    who = [(k, k) for k in ("model", "variant", "device", "precision")]
    by_category = [("prompts", "prompts"), ("followed", "followed"), ("of dense", "retention")]
    by_category += [(c.replace("_", " "), c) for c in world.CATEGORIES]
    by_criterion = [(c, f"{c} ok") for c in checker.CRITERIA]
    by_criterion += [("identity, single emoji", "single identity"), ("clean", "clean")]
    by_criterion += [("median PSNR, dB", "psnr"), ("to reference, dB", "reference psnr")]
    by_criterion += [("s a picture", "seconds")]
    control = [("followed", "control followed")]
    control += [(c, f"control {c}") for c in checker.CRITERIA]
    return f"""# Prompt following

Percent of the prompts whose picture shows what was asked (see bench/quality/README.md).

{_table(who + by_category, table)}

## By criterion

{_table(who + by_criterion, table)}

A picture is clean from {checker.CLEAN_PSNR:g} dB PSNR to the ideal picture on.

## Control

The same pictures, each judged by another prompt of its category: what agrees by chance.

{_table(who + control, table)}
"""


def sheet(results, pictures, ideals, chosen):
    """Prompts with their ideal picture and every result's, framed by whether they followed.

    pictures: for each result the pictures of the entries `chosen` (indices).
    """
    font = ImageFont.load_default()
    columns = 1 + len(results)
    width, head = columns * (TILE + 2 * EDGE) + 2 * EDGE, 3 * LINE
    across = max(1, 1400 // width)
    height = head + TILE + 2 * EDGE + LINE // 2
    down = -(-len(chosen) // across)
    out = Image.new("RGB", (across * width, down * height + LINE), "white")
    draw = ImageDraw.Draw(out)
    labels = ["ideal"] + [f"{r.model} {r.device} {r.precision}" for r in results]
    for n, index in enumerate(chosen):
        x, y = n % across * width + EDGE, n // across * height
        lines = textwrap.wrap(results[0].entries[index].prompt, max(20, (width - 8) // 6))[:2]
        draw.multiline_text((x, y + 2), "\n".join(lines), fill="black", font=font, spacing=2)
        tiles = [ideals[n]] + [p[n] for p in pictures]
        frames = [PLAIN] + [GOOD if r.verdicts[index].followed else BAD for r in results]
        for i, (tile, frame, label) in enumerate(zip(tiles, frames, labels, strict=True)):
            left, top = x + i * (TILE + 2 * EDGE), y + head
            draw.text((left, top - LINE + 2), label[:26], fill=(110, 110, 110), font=font)
            box = (left, top, left + TILE + 2 * EDGE - 2, top + TILE + 2 * EDGE - 2)
            draw.rectangle(box, fill=frame)
            picture = Image.fromarray(tile)
            picture.thumbnail((TILE, TILE), Image.LANCZOS)
            out.paste(picture, (left + EDGE - 1, top + EDGE - 1))
    return out


def write(results, folder):
    """report.md, results.csv and details.jsonl."""
    (folder / "report.md").write_text(markdown(results), encoding="utf-8")
    table = rows(results)
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, table[0])
        writer.writeheader()
        writer.writerows(table)
    with open(folder / "details.jsonl", "w", encoding="utf-8") as f:
        for r in results:
            for e, v in zip(r.entries, r.verdicts, strict=True):
                item = {"model": r.model, "device": r.device, "precision": r.precision}
                item |= {"id": e.id, "prompt": e.prompt, "followed": v.followed}
                item |= {c: getattr(v, c) for c in checker.CRITERIA}
                item |= {"psnr": round(v.psnr, 2), "notes": v.notes}
                f.write(json.dumps(item, ensure_ascii=False) + "\n")
