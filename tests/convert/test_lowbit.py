# SPDX-License-Identifier: Apache-2.0
"""Recovery of codes and scales: exact, and refusing what only looks low-bit."""

import numpy as np
import pytest
from bonsai_convert import blocks, lowbit
from minimal import bf16, low_bit, read_safetensors


def pack(raw, dtype, type_name):
    return lowbit.pack_lossless(lowbit.analyse(raw, dtype), type_name)


def raw_of(x, kind):
    if kind == "BF16":
        return bf16(x).reshape(-1)
    dtype, view = (np.float16, np.uint16) if kind == "F16" else (np.float32, np.uint32)
    return np.ascontiguousarray(x, dtype).view(view).reshape(-1)


def exact_scales(rng, n):
    """Scales that BF16, F16 and F32 all hold exactly: 8 significant bits."""
    return (rng.integers(128, 256, n) / 2.0**14).astype(np.float32)


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_codes_and_scales_come_back(kind, levels):
    rng = np.random.default_rng(3)
    codes = (
        rng.integers(-1, 2, (40, 128)) if levels == "ternary" else rng.choice([-1, 1], (40, 128))
    )
    scales = exact_scales(rng, 40)
    groups = lowbit.analyse(raw_of(codes * scales[:, None], kind), kind)
    assert np.array_equal(groups.trits.astype(int) - 1, codes)
    assert np.array_equal(groups.scales.astype(np.float32), scales)
    assert groups.stats.kind == levels


@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_fixture_truth(formats, levels):
    tensors = read_safetensors(formats / f"unpacked_{levels}_bf16.safetensors")
    type_name = "Q1_0" if levels == "binary" else "PTQ1_0"
    with np.load(formats / f"unpacked_{levels}_bf16_truth.npz") as truth:
        modules = [k[: -len(".codes")] for k in truth.files if k.endswith(".codes")]
        assert len(modules) == 3
        for m in modules:
            dtype, data, _ = tensors[m + ".weight"]
            raw = data.view(np.uint16)
            groups = lowbit.analyse(raw, dtype)
            codes = truth[m + ".codes"]
            assert np.array_equal(groups.trits.reshape(codes.shape).astype(int) - 1, codes)
            assert np.array_equal(groups.scales, truth[m + ".scale"].reshape(-1))
            assert groups.stats.kind == levels
            packed = pack(raw, dtype, type_name)
            values = blocks.dequantize(type_name, packed)
            source = (raw.astype(np.uint32) << 16).view(np.float32).reshape(-1, 128)
            assert np.array_equal(values, source)


def test_negative_zero_is_zero():
    x = np.full(128, -0.0, np.float16)
    x[:3] = (0.5, -0.5, 0.0)
    groups = lowbit.analyse(x.view(np.uint16), "F16")
    assert groups.trits[0].tolist() == [2, 0] + [1] * 126
    assert groups.stats.kind == "ternary"


def test_zero_group_gets_scale_zero_and_fits_either_kind():
    raw = np.zeros(256, np.uint16)
    raw[5] = 0x8000
    stats = lowbit.analyse(raw, "BF16").stats
    assert (stats.zero, stats.kind) == (2, "zero")
    for name in ("Q1_0", "PTQ1_0", "PQ2_0"):
        assert not blocks.dequantize(name, pack(raw, "BF16", name)).any()


def test_binary_with_a_zero_group_stays_binary():
    x = np.where(np.random.default_rng(0).random((3, 128)) < 0.5, -0.25, 0.25).astype(np.float16)
    x[1] = 0
    raw = x.view(np.uint16)
    assert lowbit.analyse(raw, "F16").stats.kind == "binary"
    assert np.array_equal(blocks.dequantize("Q1_0", pack(raw, "F16", "Q1_0")), x)


def test_one_ulp_makes_a_group_bad_and_is_located():
    x = low_bit(np.random.default_rng(5), 8, 384, "binary")
    raw = x.view(np.uint16).reshape(-1).copy()
    raw[5 * 384 + 130] ^= 1
    stats = lowbit.analyse(raw, "F16").stats
    assert (stats.bad, stats.first_bad, stats.kind) == (1, 5 * 3 + 1, "damaged")
    with pytest.raises(lowbit.NotLowBit):
        pack(raw, "F16", "PTQ1_0")


def test_scale_that_fp16_cannot_hold_is_refused():
    for scale in (2.0**-30, 1e5, 1.0 + 2.0**-20):
        x = np.full(128, scale, np.float32)
        stats = lowbit.analyse(x.view(np.uint32), "F32").stats
        assert (stats.bad, stats.inexact) == (0, 1), scale
        with pytest.raises(lowbit.NotLowBit):
            pack(x.view(np.uint32), "F32", "PTQ1_0")


def test_ternary_does_not_fit_one_bit():
    raw = low_bit(np.random.default_rng(5), 8, 128, "ternary").view(np.uint16).reshape(-1)
    with pytest.raises(lowbit.NotLowBit):
        pack(raw, "F16", "Q1_0")


def test_random_weights_are_dense():
    x = np.random.default_rng(0).standard_normal(128 * 50).astype(np.float32)
    assert lowbit.analyse(raw_of(x, "F32"), "F32").stats.kind == "dense"


def test_statistics_of_parts_add_up():
    x = low_bit(np.random.default_rng(5), 6, 128, "ternary").view(np.uint16).copy()
    x[4, 7] = 0x1234
    whole = lowbit.analyse(x.reshape(-1), "F16").stats
    parts = lowbit.GroupStats()
    for row in x:
        parts.add(lowbit.analyse(row, "F16").stats)
    assert parts == whole
    assert whole.first_bad == 4
