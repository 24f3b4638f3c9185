# SPDX-License-Identifier: Apache-2.0
"""Quantisers: optimal where an optimum is computable, better than the common rule elsewhere."""

import itertools

import numpy as np
import pytest
from bonsai_convert import blocks, quantize


def error(x, name, packed):
    return float(((blocks.dequantize(name, packed) - x) ** 2).sum())


def naive_q4_0(x):
    """The usual rule: the largest magnitude, with its sign, is level -8."""
    top = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
    d = top / -8
    q = np.clip(np.floor(x / np.where(d == 0, 1, d)[:, None] + 8.5), 0, 15)
    return blocks.pack_q4_0(q.astype(np.uint8), d.astype(np.float16))


DRAWS = {
    "gauss": lambda rng: rng.standard_normal((500, 32)),
    "laplace": lambda rng: rng.laplace(size=(500, 32)),
    "uniform": lambda rng: rng.uniform(-1, 1, (500, 32)),
    "skewed": lambda rng: rng.gamma(1.0, size=(500, 32)) - 0.3,
}


@pytest.mark.parametrize("draw", DRAWS)
def test_q4_0_beats_the_usual_rule(draw):
    x = (DRAWS[draw](np.random.default_rng(2)) * 0.02).astype(np.float32)
    ours, usual = error(x, "Q4_0", quantize.q4_0(x)), error(x, "Q4_0", naive_q4_0(x))
    assert ours < 0.93 * usual


def test_q4_0_is_near_the_best_of_a_fine_search():
    x = (np.random.default_rng(4).standard_normal((40, 32)) * 0.02).astype(np.float32)
    ours = blocks.dequantize("Q4_0", quantize.q4_0(x))
    for row, mine in zip(x, ours):
        steps = np.linspace(0.05, 0.5, 4000) * np.abs(row).max()
        steps = np.concatenate([steps, -steps])[:, None]
        q = np.clip(np.rint(row / steps), -8, 7)
        best = ((q * steps - row) ** 2).sum(axis=1).min()
        assert ((mine - row) ** 2).sum() <= 1.12 * best


def test_q8_0_error_bound():
    x = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    back = blocks.dequantize("Q8_0", quantize.q8_0(x))
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    # Half a step, and what rounding the step to fp16 takes from the largest weight.
    assert (np.abs(back - x) <= step * (0.5 + 127 * 2.0**-11)).all()


def test_ternary_is_the_optimum_over_all_codes():
    rng = np.random.default_rng(7)
    for _ in range(20):
        x = rng.standard_normal((1, 6)).astype(np.float32)
        trits, scale = quantize.ternary_groups(x)
        mine = (((trits.astype(np.float64) - 1) * float(scale[0]) - x) ** 2).sum()
        best = np.inf
        for code in itertools.product((-1, 0, 1), repeat=6):
            c = np.array(code, np.float64)
            s = (c @ x[0]) / (c @ c) if c.any() else 0.0
            best = min(best, ((c * s - x[0]) ** 2).sum())
        assert mine <= best * 1.0001 + 1e-9  # the scale is rounded to fp16


def test_ternary_beats_the_mean_as_scale():
    x = np.random.default_rng(1).standard_normal((100, 128)).astype(np.float32)
    mean = np.abs(x).mean(axis=1, keepdims=True)
    with_mean = ((np.clip(np.rint(x / mean), -1, 1) * mean - x) ** 2).sum()
    assert error(x, "PTQ1_0", quantize.low_bit(x, "PTQ1_0")) < 0.98 * with_mean


def test_binary_mean_is_the_optimum():
    x = np.random.default_rng(1).standard_normal((50, 128)).astype(np.float32)
    mine = error(x, "Q1_0", quantize.low_bit(x, "Q1_0"))
    scales = np.abs(x).mean(axis=1, keepdims=True)
    for factor in (0.97, 1.03):
        assert mine < ((np.where(x < 0, -1, 1) * scales * factor - x) ** 2).sum()


@pytest.mark.parametrize("name, block", [
    ("Q8_0", 32), ("Q4_0", 32), ("PTQ1_0", 128), ("PQ2_0", 128), ("Q1_0", 128),
])  # fmt: skip
def test_zeros_and_tiny_values_stay_finite(name, block):
    x = np.zeros((4, block), np.float32)
    x[1] = 1e-30  # below every fp16 scale
    x[2, 3] = -6e-8  # at the edge of fp16
    x[3, 0] = 60000
    with np.errstate(all="raise", under="ignore"):
        back = blocks.dequantize(name, quantize.quantize(x, name))
    assert np.isfinite(back).all()
    assert not back[:2].any()


@pytest.mark.parametrize("name", ["PTQ1_0", "PQ2_0"])
def test_ternary_input_is_a_fixed_point(name):
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-1, 2, (30, 128)), rng.random(30).astype(np.float16)
    x = (codes * scales[:, None].astype(np.float32)).astype(np.float32)
    assert np.array_equal(blocks.dequantize(name, quantize.low_bit(x, name)), x)
