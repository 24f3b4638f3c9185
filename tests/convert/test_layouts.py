# SPDX-License-Identifier: Apache-2.0
"""Whole checkpoints in packed layouts: the packers write what the libraries wrote, and what the
converter makes of each layout is the same to the byte."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from bonsai_convert import blocks, cli, gguf, parts, torchfile
from bonsai_convert import ggml_types as types
from bonsai_convert.safetensors import Entry, Files
from minimal import edit_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import pack_layouts  # noqa: E402

LAYOUTS = ("mlx", "gemlite")


@pytest.fixture(scope="module")
def packed(originals, tmp_path_factory):
    """(kind, layout) -> repository with packed transformer and text encoder; read only."""
    root = tmp_path_factory.mktemp("packed")
    for kind in ("ternary", "binary"):
        for layout in LAYOUTS:
            pack_layouts.write(layout, originals / kind, root / kind / layout)
            pack_layouts.write(layout, originals / kind, root / kind / f"{layout}-plain", True)
    return root


def convert(source, target, *args):
    assert cli.main([str(source), "-o", str(target), *args]) == 0
    return gguf.Reader(target)


def stored(reader, name):
    t = reader.tensors[name]
    with open(reader.path, "rb") as f:
        f.seek(t.offset)
        return np.frombuffer(f.read(t.nbytes), np.uint8)


@pytest.mark.parametrize("generation", ["051", "060"])
@pytest.mark.parametrize("kind, bits", [("ternary", 2), ("binary", 1)])
def test_the_gemlite_packer_writes_what_the_library_wrote(formats, kind, bits, generation):
    found = torchfile.read(
        formats / f"gemlite{generation}_{kind}_int{bits}_g128_state_dict.pt"
    ).entries
    truth = np.load(formats / f"unpacked_{kind}_bf16_truth.npz")
    count, files = 0, Files()
    for module in (n.removesuffix(".codes") for n in truth if n.endswith(".codes")):
        scale = truth[f"{module}.scale"].astype(np.float32)
        arrays = pack_layouts.gemlite_arrays(
            module, truth[f"{module}.codes"], scale, bits, generation == "060"
        )
        for name, (dtype, shape, data) in arrays.items():
            entry = found[name]
            assert (entry.dtype, entry.shape) == (dtype, shape), name
            raw = files.read_bytes(entry.path, entry.offset, entry.nbytes)
            # By value: the library's zeros of an all-zero group are 0, these -0.
            assert np.array_equal(raw.view(data.dtype).reshape(shape), data), name
            count += 1
    files.close()
    assert count == sum(".to_" in n or ".ff." in n for n in found)


@pytest.mark.parametrize("kind, bits", [("ternary", 2), ("binary", 1)])
def test_the_mlx_packer_writes_what_the_library_wrote(formats, kind, bits):
    found = pack_layouts.read_file(formats / f"mlx_{kind}_{bits}bit_g128.safetensors")
    truth = np.load(formats / f"unpacked_{kind}_bf16_truth.npz")
    for module in (n.removesuffix(".codes") for n in truth if n.endswith(".codes")):
        codes, scale = truth[f"{module}.codes"], truth[f"{module}.scale"].astype(np.float32)
        for name, (dtype, shape, data) in pack_layouts.mlx_arrays(
            module, codes, scale, bits
        ).items():
            assert found[name][:2] == (dtype, shape), name
            theirs = found[name][2]
            if dtype == "BF16":  # -0 and 0 are alike
                theirs, data = (np.where(x == 0x8000, 0, x) for x in (theirs, data))
            assert np.array_equal(theirs, data), name


def test_the_hqq_packer_writes_what_the_library_wrote(formats):
    found = torchfile.read(formats / "hqq_4bit_g64_qmodel.pt")
    truth = np.load(formats / "hqq_4bit_g64_truth.npz")
    files = Files()
    for module in (n.removesuffix(".codes") for n in truth if n.endswith(".codes")):
        ours = pack_layouts.hqq_module(
            *(truth[f"{module}.{k}"] for k in ("codes", "scale", "zero"))
        )
        for leaf, value in ours.items():
            if leaf not in ("W_q", "scale", "zero"):
                theirs = found.values[f"{module}.{leaf}"]
                assert theirs == value or theirs.text == f"{value.module} {value.name}", leaf
                continue
            entry = found.entries[f"{module}.{leaf}"]
            assert (entry.dtype, entry.shape) == value[:2]
            raw = files.read_bytes(entry.path, entry.offset, entry.nbytes)
            assert np.array_equal(raw, np.ascontiguousarray(value[2]).reshape(-1).view(np.uint8))
    files.close()


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_all_layouts_give_the_same_bytes(originals, packed, tmp_path, kind):
    for args in ([], ["--compact"]):
        wanted = convert(originals / kind, tmp_path / "unpacked.gguf", *args)
        for layout in LAYOUTS:
            found = convert(packed / kind / f"{layout}-plain", tmp_path / "packed.gguf", *args)
            for name, tensor in wanted.tensors.items():
                assert found.tensors[name].type is tensor.type, name
            assert found.keys[gguf.HASH_KEY] == wanted.keys[gguf.HASH_KEY]
            differing = {k for k in wanted.keys if found.keys[k] != wanted.keys[k]}
            assert differing <= {"general.name", "general.source.repo_url"}


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_packed_releases(originals, packed, tmp_path, kind, capsys):
    """With the 4-bit text encoders that such releases have."""
    wanted = convert(originals / kind, tmp_path / "unpacked.gguf")
    for layout in LAYOUTS:
        target = tmp_path / f"{layout}.gguf"
        found = convert(packed / kind / layout, target)
        for name in wanted.tensors:
            if not name.startswith("te."):
                assert np.array_equal(stored(found, name), stored(wanted, name)), name
        quantised = {n for n, t in found.tensors.items() if t.type is types.Q4_1}
        assert len(quantised) == (15 if layout == "mlx" else 14)  # HQQ leaves the embedding
        assert cli.main([str(packed / kind / layout), "--verify", str(target)]) == 0
        out = capsys.readouterr()
        assert "verified" in out.out
        assert ("scheduler" in out.out) == (layout == "gemlite")


def test_compact_leaves_four_bits_alone(packed, tmp_path):
    wanted = convert(packed / "ternary" / "mlx", tmp_path / "lossless.gguf")
    found = convert(packed / "ternary" / "mlx", tmp_path / "compact.gguf", "--compact")
    names = [n for n, t in wanted.tensors.items() if t.type is types.Q4_1]
    assert len(names) == 15
    for name in names:
        assert np.array_equal(stored(found, name), stored(wanted, name)), name


def test_a_packed_text_encoder_decodes_to_its_values(packed, tmp_path):
    for layout, folder in (("mlx", "text_encoder-mlx-4bit"), ("gemlite", "text_encoder-hqq-4bit")):
        model = convert(packed / "ternary" / layout, tmp_path / f"{layout}.gguf")
        source = parts.open_part("text_encoder", packed / "ternary" / layout / folder).tensors
        tensor = source["model.layers.1.mlp.down_proj.weight"]
        name = "te.blk.1.ffn_down.weight"
        if isinstance(tensor, Entry):  # 64 columns are no group of 64 in HQQ's halves
            continue
        files = Files()
        values = tensor.raw(files, 0, tensor.rows).view(np.float32)
        files.close()
        decoded = blocks.decode(model.tensors[name].type, stored(model, name))
        limit = 0 if layout == "mlx" else 2**-11 * np.abs(values).max() * 4
        assert np.abs(decoded - values).max() <= limit


def test_a_transformers_own_folder_is_a_source(packed, tmp_path):
    for layout, folder in (
        ("mlx", "transformer-packed-mflux"),
        ("gemlite", "transformer-gemlite-int2"),
    ):
        convert(packed / "ternary" / layout / folder, tmp_path / "model.gguf")


def fails(capsys, *args):
    assert cli.main([str(a) for a in args]) == 1
    return capsys.readouterr().err


def test_two_transformers_need_a_choice(packed, tmp_path, capsys):
    root = Path(shutil.copytree(packed / "ternary" / "mlx", tmp_path / "both", symlinks=True))
    shutil.copytree(
        packed / "ternary" / "gemlite" / "transformer-gemlite-int2",
        root / "transformer-gemlite-int2",
    )
    out = tmp_path / "model.gguf"
    assert "2 folders hold a transformer" in fails(capsys, root, "-o", out)
    assert cli.main([str(root / "transformer-gemlite-int2"), "-o", str(out)]) == 0


def test_settings_that_contradict_the_weights(packed, tmp_path, capsys):
    for layout, folder in (
        ("mlx", "transformer-packed-mflux"),
        ("gemlite", "transformer-gemlite-int2"),
    ):
        root = shutil.copytree(packed / "ternary" / layout, tmp_path / layout, symlinks=True)
        edit_json(Path(root) / folder / "quantization_config.json", bits=1)
        error = fails(capsys, root, "-o", tmp_path / "model.gguf")
        assert "download both again" in error and folder in error


def test_files_of_macos_archives_are_ignored(packed, tmp_path):
    root = Path(shutil.copytree(packed / "ternary" / "gemlite", tmp_path / "x", symlinks=True))
    (root / "transformer-gemlite-int2" / "._state_dict.pt").write_bytes(b"PK\3\4 no archive")
    convert(root, tmp_path / "model.gguf")
