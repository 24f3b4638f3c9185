# SPDX-License-Identifier: Apache-2.0
"""The report: every tensor, with errors computed again here from the files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bonsai_convert import blocks, cli, floats, gguf, parts
from bonsai_convert.safetensors import Files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import pack_layouts  # noqa: E402


def convert(source, folder, *args):
    target, report = folder / "model.gguf", folder / "report.json"
    assert cli.main([str(source), "-o", str(target), "--report", str(report), *args]) == 0
    return gguf.Reader(target), json.loads(report.read_text())


def values_in_model(reader, name):
    t = reader.tensors[name]
    with open(reader.path, "rb") as f:
        f.seek(t.offset)
        return blocks.decode(t.type, np.frombuffer(f.read(t.nbytes), np.uint8)).reshape(t.shape)


def values_in_source(root, row):
    """float32 in the order of the model file."""
    part = row["name"].split(".")[0]
    kind = {"te": "text_encoder", "dit": "transformer", "vae": "vae"}[part]
    folder = next(p for p in sorted(root.iterdir()) if p.name.startswith(kind))
    tensor = parts.open_part(kind, folder).tensors[row["source"]]
    files = Files()
    x = floats.to_f32(tensor.raw(files, 0, tensor.rows), tensor.dtype).reshape(tensor.shape)
    files.close()
    return x.transpose(0, 2, 3, 1).reshape(row["shape"]) if x.ndim == 4 else x


def check(root, reader, report):
    assert [t["name"] for t in report["tensors"]] == list(reader.tensors)
    for row in report["tensors"]:
        stored, source = values_in_model(reader, row["name"]), values_in_source(root, row)
        error = np.abs(stored - source).max()
        assert row["max_error"] == pytest.approx(error, rel=1e-6, abs=0), row["name"]
        assert row["exact"] == np.array_equal(stored, source)
        assert row["zero_fraction"] == pytest.approx((source == 0).mean(), rel=1e-9)
        t = reader.tensors[row["name"]]
        assert (row["type"], row["bytes"]) == (t.type.name, t.nbytes)
        assert row["bits_per_weight"] == pytest.approx(8 * t.nbytes / source.size)


@pytest.mark.parametrize("args", [[], ["--compact"], ["--weights", "q8"]])
def test_errors_and_zeros_are_those_of_the_files(originals, tmp_path, capsys, args):
    reader, report = convert(originals / "ternary", tmp_path, *args)
    check(originals / "ternary", reader, report)
    assert report["exact"] == (not args)
    assert report["variant"] == ("dense" if "--weights" in args else "ternary")
    out = capsys.readouterr().out
    assert ("every tensor equals its source" in out) == (not args)
    if args == ["--compact"]:
        assert "te.blk.*.ffn_down.weight (2) BF16 -> Q4_0: largest error" in out


@pytest.mark.parametrize("layout", ["mlx", "gemlite"])
def test_packed_sources(originals, tmp_path, capsys, layout):
    pack_layouts.write(layout, originals / "ternary", tmp_path / "source")
    reader, report = convert(tmp_path / "source", tmp_path)
    check(tmp_path / "source", reader, report)
    formats = {row["source_format"] for row in report["tensors"]}
    out = capsys.readouterr().out
    if layout == "mlx":
        assert report["exact"] and {"MLX 2-bit g128", "MLX 4-bit g64"} <= formats
    else:
        assert not report["exact"] and {"gemlite int2 g128", "HQQ 4-bit g64"} <= formats
        assert "14 tensors are not exact:" in out
        assert "te.blk.*.attn_q.weight (2) HQQ 4-bit g64 -> Q4_1: largest error" in out
        assert "klein's own schedule" in report["notes"][0] and "klein's own schedule" in out


def fails(capsys, *args):
    assert cli.main([str(a) for a in args]) == 1
    return capsys.readouterr().err


def test_strict(originals, tmp_path, capsys):
    target = tmp_path / "model.gguf"
    convert(originals / "ternary", tmp_path, "--strict")
    target.unlink()
    error = fails(capsys, originals / "ternary", "-o", target, "--strict", "--compact")
    assert "'model.embed_tokens.weight' is BF16, which Q8_0 does not hold exactly" in error
    assert not target.exists()


def test_strict_refuses_before_it_writes(originals, tmp_path, capsys, monkeypatch):
    pack_layouts.write("gemlite", originals / "ternary", tmp_path / "source")
    monkeypatch.setattr(cli, "write_model", None)
    error = fails(capsys, tmp_path / "source", "-o", tmp_path / "m.gguf", "--strict")
    assert "HQQ 4-bit g64, which Q4_1 does not hold exactly" in error


def test_numbers_that_fit_the_smaller_type_are_exact(originals, tmp_path):
    """BF16 to F16 may lose nothing: what counts is measured, not supposed."""
    reader, report = convert(originals / "binary", tmp_path, "--vae", "f16")
    biases = [t for t in report["tensors"] if t["type"] == "F16" and t["source_format"] == "BF16"]
    assert biases and not all(t["exact"] for t in biases)
    for t in biases:
        stored, source = (
            values_in_model(reader, t["name"]),
            values_in_source(originals / "binary", t),
        )
        assert t["exact"] == np.array_equal(stored, source)


def test_usage(originals, tmp_path, capsys):
    for args in (["--dry-run", "--report", tmp_path / "r"], ["-o", "m", "--report", "no/where/r"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(originals / "dense"), *map(str, args)])
        assert caught.value.code == 2 and "--report" in capsys.readouterr().err
