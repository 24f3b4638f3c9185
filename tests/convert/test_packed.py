# SPDX-License-Identifier: Apache-2.0
"""Packed layouts on bytes that their own libraries wrote: codes and scales equal, no tolerance."""

import sys
from pathlib import Path

import numpy as np
import pytest
from bonsai_convert import blocks, gemlite, hqq, lowbit, parts, torchfile, torchpickle
from bonsai_convert import ggml_types as types
from bonsai_convert.errors import ConvertError
from bonsai_convert.safetensors import Entry, Files
from bonsai_convert.tensor import Tensor
from minimal import edit_tensors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import torch_io  # noqa: E402

LOW_BIT = [
    ("ternary", "gemlite051_ternary_int2_g128_state_dict.pt"),
    ("ternary", "gemlite060_ternary_int2_g128_state_dict.pt"),
    ("ternary", "mlx_ternary_2bit_g128.safetensors"),
    ("ternary", "unpacked_ternary_bf16.safetensors"),
    ("binary", "gemlite051_binary_int1_g128_state_dict.pt"),
    ("binary", "gemlite060_binary_int1_g128_state_dict.pt"),
    ("binary", "mlx_binary_1bit_g128.safetensors"),
    ("binary", "mlx_binary_1bit_g128_libquant.safetensors"),
    ("binary", "unpacked_binary_bf16.safetensors"),
]
MODULES = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.linear_out",
    "single_transformer_blocks.0.attn.to_out",
)  # fmt: skip
DENSE = ("x_embedder.weight", "transformer_blocks.0.attn.norm_q.weight")


@pytest.fixture
def files():
    opened = Files()
    yield opened
    opened.close()


def in_steps(tensor, step):
    return [(r, min(step, tensor.rows - r)) for r in range(0, tensor.rows, step)]


@pytest.mark.parametrize("step", [7, 4096])
@pytest.mark.parametrize("kind, name", LOW_BIT)
def test_codes_and_scales(formats, files, monkeypatch, kind, name, step):
    monkeypatch.setattr(gemlite, "_WINDOW_ROWS", 24)  # fewer rows than the fixtures have
    part = parts.open_part("transformer", formats / name)
    truth = np.load(formats / f"unpacked_{kind}_bf16_truth.npz")
    for module in MODULES:
        tensor = part.tensors[f"{module}.weight"]
        codes, scales = truth[f"{module}.codes"], truth[f"{module}.scale"]
        assert tensor.shape == codes.shape
        found = [tensor.groups(files, first, rows) for first, rows in in_steps(tensor, step)]
        trits = np.concatenate([g.trits for g in found]).reshape(codes.shape)
        assert np.array_equal(trits.astype(int) - 1, codes)
        assert np.array_equal(np.concatenate([g.scales for g in found]), scales.reshape(-1))
        stats = lowbit.GroupStats()
        for g in found:
            stats.add(g.stats)
        assert stats.kind == kind and stats.zero == (scales == 0).sum()
        # The values of the source's arithmetic are the codes times the scales.
        values = tensor.raw(files, 0, tensor.rows)
        dense = blocks.floats.to_f32(values, tensor.dtype).reshape(codes.shape)
        assert np.array_equal(dense, codes * np.repeat(scales.astype(np.float32), 128, axis=1))


@pytest.mark.parametrize("kind, name", [c for c in LOW_BIT if "libquant" not in c[1]])
def test_dense_tensors_beside_them(formats, files, kind, name):
    part = parts.open_part("transformer", formats / name)
    truth = np.load(formats / f"unpacked_{kind}_bf16_truth.npz")
    for name in DENSE:
        tensor = part.tensors[name]
        raw = tensor.raw(files, 0, tensor.rows)
        assert tensor.dtype == "BF16" and tensor.shape == truth[name].shape
        values = blocks.floats.to_f32(raw, "BF16")
        assert np.array_equal(values, truth[name].reshape(-1))


def four_bit(formats, name):
    part = parts.open_part("text_encoder", formats / name)
    return {n: t for n, t in part.tensors.items() if not isinstance(t, Entry)}


def test_mlx_text_encoder_is_exact_in_q4_1(formats, files):
    truth = np.load(formats / "mlx_te_4bit_g64_truth.npz")
    tensors = four_bit(formats, "mlx_te_4bit_g64.safetensors")
    assert len(tensors) == 3
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        codes = tensor.codes(files, 0, tensor.rows)
        assert np.array_equal(codes.q, truth[f"{module}.codes"])
        assert tensor.stored(files) == (types.Q4_1, True)
        dense = truth[f"{module}.dense_f32"]
        parts_of = [
            tensor.packed(files, first, rows, types.Q4_1) for first, rows in in_steps(tensor, 5)
        ]
        stored = np.concatenate([data for data, _ in parts_of])
        assert np.array_equal(blocks.decode(types.Q4_1, stored), dense.reshape(-1))
        assert sum(zeros for _, zeros in parts_of) == (dense == 0).sum()


def test_mlx_scales_that_fp16_cannot_hold_are_not_called_exact(formats, tmp_path, files):
    path = tmp_path / "model.safetensors"
    path.write_bytes((formats / "mlx_te_4bit_g64.safetensors").read_bytes())

    def change(tensors):  # 2^-20 (1 + 2^-6): too fine for a subnormal fp16
        tensors["model.embed_tokens.biases"][1].view(np.uint16)[3] = 0x3582

    edit_tensors(path, change)  # fmt: skip
    tensors = four_bit(tmp_path, "model.safetensors")
    assert tensors["model.embed_tokens.weight"].stored(files) == (types.Q4_1, False)
    assert tensors["model.layers.0.mlp.down_proj.weight"].stored(files)[1]


def test_hqq_halves_nibbles_and_zeros(formats, files):
    truth = np.load(formats / "hqq_4bit_g64_truth.npz")
    tensors = four_bit(formats, "hqq_4bit_g64_qmodel.pt")
    assert len(tensors) == 7
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        q, scale, zero = (truth[f"{module}.{k}"] for k in ("codes", "scale", "zero"))
        assert np.array_equal(tensor.codes(files, 0, tensor.rows).q, q)
        steps = in_steps(tensor, 7)  # across the middle, where the nibbles change
        raw = np.concatenate([tensor.raw(files, first, rows) for first, rows in steps])
        values = raw.view(np.float32).reshape(q.shape)
        wide = [np.repeat(x.astype(np.float64), 64, axis=1) for x in (scale, zero)]
        exact = (q - wide[1]) * wide[0]
        assert np.array_equal(values, exact.astype(np.float32))
        if f"{module}.dense_f32" in truth:
            assert np.array_equal(values, truth[f"{module}.dense_f32"])
        kind, is_exact = tensor.stored(files)
        assert (kind, is_exact) == (types.Q4_1, False)
        stored, _ = tensor.packed(files, 0, tensor.rows, kind)
        error = np.abs(blocks.decode(kind, stored).reshape(q.shape) - exact)
        # -zero x scale is rounded to fp16: half a unit in the last place of its 11 bits.
        assert 0 < error.max() <= np.abs(wide[0] * wide[1]).max() * 2**-11 * 1.01


def test_mlx_of_four_levels_is_no_low_bit_model(formats, files):
    part = parts.open_part("transformer", formats / "mlx_lib_quantize_2bit_g128.safetensors")
    tensor = part.tensors["four_level.weight"]
    dense = np.load(formats / "mlx_lib_quantize_2bit_g128_truth.npz")["dense"]
    assert np.array_equal(tensor.raw(files, 0, 8).view(np.float32), dense.reshape(-1))
    assert tensor.groups(files, 0, 8).stats.kind == "dense"


def test_ternary_weights_that_mx_quantize_ruined_are_named(formats, tmp_path, files):
    path = tmp_path / "x.safetensors"
    path.write_bytes((formats / "mlx_ternary_2bit_g128.safetensors").read_bytes())

    def change(tensors):
        """What the library makes of s {-1, 0, +1}: scale -s / 2, bias s, codes 3, 2, 0."""
        module = MODULES[0]
        scales, biases = (tensors[f"{module}.{k}"][1].view(np.uint16) for k in ("scales", "biases"))
        biases[:] = scales
        half = (scales.astype(np.uint32) << 16).view(np.float32) * -0.5
        scales[:] = half.view(np.uint32) >> 16
        packed = tensors[f"{module}.weight"][1]
        codes = [(packed >> shift) & 3 for shift in (0, 2, 4, 6)]
        table = np.array([3, 2, 0, 0], np.uint8)
        packed[:] = sum(table[c] << shift for c, shift in zip(codes, (0, 2, 4, 6)))

    edit_tensors(path, change)  # fmt: skip
    tensor = parts.open_part("transformer", path).tensors[f"{MODULES[0]}.weight"]
    with pytest.raises(ConvertError, match="quantised again with mx.quantize"):
        tensor.groups(files, 0, tensor.rows)


def encoded(value):
    """As the library writes plain values into safetensors."""
    if isinstance(value, tuple):
        return "I64", (len(value),), np.array(value, np.int64)
    if isinstance(value, bool):
        return "U8", (), np.array(value, np.uint8)
    if isinstance(value, int):
        return "I32", (), np.array(value, np.int32)
    return "U8", (len(value),), np.frombuffer(value.encode(), np.uint8)


def test_the_loss_of_offsets_is_that_of_all_weights(formats, files):
    """Affine.loss, from codes and groups, against the differences of all decoded weights."""
    for tensor in four_bit(formats, "hqq_4bit_g64_qmodel.pt").values():
        kind, exact = tensor.stored(files)
        assert not exact
        data, _ = tensor.packed(files, 0, tensor.rows, kind)
        found = tensor.loss(files, 0, tensor.rows, kind, data)
        wanted = Tensor.loss(tensor, files, 0, tensor.rows, kind, data)
        assert wanted.largest > 0
        for name in ("largest", "square_error", "square_norm"):
            # The source rounds each product to float32, which the closed form does not.
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-3)


def test_a_pickle_that_doubles_is_refused_at_once():
    """A hundred tuples, each naming the one below twice: a repr of 2^100 brackets as a key."""
    levels = b"".join(b"h" + bytes([i - 1]) + b"\x86q" + bytes([i]) for i in range(1, 100))
    with pytest.raises(torchpickle.Refused, match="a dict with the key"):
        torchpickle.load(b"\x80\x02}()q\x00" + levels + b"K\x01u.")


def test_hqq_with_encoded_values(formats, tmp_path, files):
    plain = torchfile.read(formats / "hqq_4bit_g64_qmodel.pt")
    wanted = hqq.tensors(plain.entries, plain.values)
    with torch_io.Writer(tmp_path / "qmodel.pt") as writer:
        tree = {}
        for name, e in plain.entries.items():
            raw = files.read_bytes(e.path, e.offset, e.nbytes)
            tree[name] = writer.tensor(e.dtype, e.shape, raw)
        for name, value in plain.values.items():
            text = value.text.replace(" ", ".") if isinstance(value, torchpickle.Name) else value
            tree[name] = writer.tensor(*encoded(text))
        tree["encoded_state_dict"] = writer.tensor(*encoded(True))
        writer.finish(tree)
    found = parts.open_part("text_encoder", tmp_path).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape and found[name].format == tensor.format
        ours, theirs = (t.raw(files, 0, t.rows) for t in (found[name], tensor))
        assert np.array_equal(ours, theirs)
