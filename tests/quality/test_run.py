# SPDX-License-Identifier: Apache-2.0
"""The run of bench/quality around its checker: kept pictures, tables, contact sheet."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "quality"))

import pictures  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import world  # noqa: E402
from checker import Verdict  # noqa: E402


class Blank:
    """Draws grey pictures and counts them; stops after `limit`."""

    def __init__(self, file, limit=1000):
        self.file, self.limit, self.seeds = file, limit, []

    def draw(self, model, settings, prompt, seed):
        if len(self.seeds) == self.limit:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        return Image.new("RGB", (64, 48), (seed, seed, seed))

    def close(self):
        pass


def judge_by_count(entry, picture):
    """Follows where one object was asked for."""
    return Verdict(count=len(entry.scene.objects) == 1)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "toy.gguf"
    path.write_bytes(b"GGUF" + b"bonsai.variant" + b"\x08\0\0\0" + b"\x05" + b"\0" * 7 + b"dense")
    return path


def test_stopped_run_goes_on_where_it_was(model, tmp_path):
    entries, settings = world.load(count=12), pictures.Settings(seed=5)
    first = Blank(model, limit=7)
    with pytest.raises(KeyboardInterrupt):
        run.measure(pictures.Album(first, model, settings, tmp_path), entries, None, None)
    second = Blank(model)
    album = pictures.Album(second, model, settings, tmp_path)
    result, drawn = run.measure(album, entries, judge_by_count, None)
    assert first.seeds + second.seeds == list(range(5, 17))
    assert drawn[3].shape == (48, 64, 3) and (drawn[3] == 8).all()
    assert result.variant == "dense"


def test_other_model_engine_or_settings_draw_again(model, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"another build")
    settings = pictures.Settings()
    folders = {
        pictures.Album(Blank(model), model, settings, tmp_path).folder,
        pictures.Album(Blank(other), model, settings, tmp_path).folder,
        pictures.Album(Blank(model), model, pictures.Settings(steps=2), tmp_path).folder,
        pictures.Album(Blank(model), model, pictures.Settings(precision="exact"), tmp_path).folder,
    }
    same = pictures.Album(Blank(model), model, pictures.Settings(threads=3), tmp_path).folder
    assert len(folders) == 4
    assert same in folders
    model.write_bytes(model.read_bytes() + b"x")
    assert pictures.Album(Blank(other), model, settings, tmp_path).folder not in folders


def test_report_gives_retention_and_control(tmp_path):
    entries = world.load(count=12)
    good, bad = [Verdict(psnr=30.0)] * 12, [Verdict(color=False)] * 12
    results = [
        report.Result("big", "dense", "cpu", "fast", entries, good, bad, 1.0),
        report.Result("little", "ternary", "cpu", "fast", entries, good[:9] + bad[:3], bad, 0.5),
        report.Result("little", "ternary", "cpu", "exact", entries, good, bad, 0.5),
    ]
    report.write(results, tmp_path)
    with open(tmp_path / "results.csv", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    assert [row["followed"] for row in table] == ["100.0", "75.0", "100.0"]
    assert [row["retention"] for row in table] == ["100.0", "75.0", ""]  # no dense drawn exactly
    assert {row["control followed"] for row in table} == {"0.0"}
    assert "| little | ternary | cpu | fast | 12 | 75.0 | 75.0 |" in (
        tmp_path / "report.md"
    ).read_text(encoding="utf-8")
    assert len((tmp_path / "details.jsonl").read_text(encoding="utf-8").splitlines()) == 36


def test_sheet_frames_by_outcome():
    entries = world.load(count=2)
    verdicts = [Verdict(), Verdict(color=False)]
    result = report.Result("m", "dense", "cpu", "fast", entries, verdicts, verdicts, 1.0)
    tile = run.np.zeros((256, 256, 3), run.np.uint8)
    sheet = report.sheet([result], [[tile, tile]], [tile, tile], [0, 1])
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert {report.GOOD, report.BAD, report.PLAIN} <= colors
