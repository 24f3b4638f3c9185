# SPDX-License-Identifier: Apache-2.0
"""Lossy block quantisation of float32 weights, with scales chosen to minimise the squared error.

Every function takes x float32 [n, block] and returns packed bytes [n, bytes a block]. Codes are
always chosen for the fp16-rounded scale that is stored, not for the one before rounding.
"""

from __future__ import annotations

import numpy as np

from . import blocks

_F = np.float32
_PART = 1 << 19  # weights: 2 MiB, and each pass of a search goes over all of them
_FP16_MAX = _F(65504)
# Steps tried for Q4_0: the largest magnitude lands on level 8 (or 7 on the other side) divided by
# these factors. Wider ranges gained nothing on Gaussian weights.
_Q4_0_LEVELS = np.linspace(6.25, 9.5, 14, dtype=_F)
_Q4_0_ROUNDS = 2  # alternations of "best step for the codes" and "best codes for the step"


def _safe_inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0 (all codes become 0 there)."""
    inverse = np.zeros_like(d)
    np.divide(_F(1), d, out=inverse, where=d != 0)
    return inverse


def _to_f16(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fp16 scales and their exact float32 values."""
    half = np.clip(d, -_FP16_MAX, _FP16_MAX).astype(np.float16)
    return half, half.astype(_F)


def q8_0(x: np.ndarray) -> np.ndarray:
    """Largest magnitude at level 127; what a search could gain is under 2 % of the error."""
    half, d = _to_f16(np.abs(x).max(axis=1) / _F(127))
    q = np.rint(x * _safe_inverse(d)[:, None])
    np.clip(q, -127, 127, out=q)
    return blocks.pack_q8_0(q.astype(np.int8), half)


def _step_scores(xt: np.ndarray, inverse: np.ndarray, work: np.ndarray) -> tuple:
    """For codes q of step 1 / inverse: (sum x q, sum q q) over each block. xt is [32, n]."""
    np.multiply(xt, inverse, out=work)
    np.rint(work, out=work)
    np.clip(work, -8, 7, out=work)
    xq = np.einsum("ij,ij->j", xt, work)
    qq = np.einsum("ij,ij->j", work, work)
    return xq, qq


def q4_0(x: np.ndarray) -> np.ndarray:
    """Search the step of each block, then refine it by least squares.

    With codes fixed, the best step is (sum x q) / (sum q q) and the squared error falls by
    (sum x q)^2 / (sum q q): that is the score of a candidate. Both signs of the step are tried,
    because the levels -8..7 reach further on one side.
    """
    xt = np.ascontiguousarray(x.T)
    n = xt.shape[1]
    top = np.abs(xt).max(axis=0)
    inverse_top = _safe_inverse(top)
    work = np.empty_like(xt)
    best_score = np.zeros(n, _F)
    best_step = np.zeros(n, _F)
    for level in _Q4_0_LEVELS:
        for sign in (_F(1), _F(-1)):
            xq, qq = _step_scores(xt, inverse_top * (sign * level), work)
            inverse_qq = _safe_inverse(qq)
            score = xq * xq * inverse_qq
            better = score > best_score
            np.copyto(best_score, score, where=better)
            np.copyto(best_step, xq * inverse_qq, where=better)
    for _ in range(_Q4_0_ROUNDS):
        xq, qq = _step_scores(xt, _safe_inverse(best_step), work)
        inverse_qq = _safe_inverse(qq)
        score = xq * xq * inverse_qq
        better = score > best_score
        np.copyto(best_score, score, where=better)
        np.copyto(best_step, xq * inverse_qq, where=better)
    half, d = _to_f16(best_step)
    np.multiply(xt, _safe_inverse(d), out=work)
    np.rint(work, out=work)
    np.clip(work, -8, 7, out=work)
    work += _F(8)
    return blocks.pack_q4_0(np.ascontiguousarray(work.astype(np.uint8).T), half)


def ternary_groups(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best scale and codes of each group: trits uint8 [n, 128], scales fp16 [n].

    If the k largest magnitudes get code +-1, the best scale is their mean and the squared error
    falls by (their sum)^2 / k: the maximum over k is the optimum over all codes and scales.
    """
    magnitude = np.abs(x)
    sums = np.sort(magnitude, axis=1)[:, ::-1].cumsum(axis=1, dtype=np.float64)
    k = np.arange(1, x.shape[1] + 1, dtype=np.float64)
    count = (sums * sums / k).argmax(axis=1)
    scale = np.take_along_axis(sums, count[:, None], axis=1)[:, 0] / (count + 1)
    half, d = _to_f16(scale.astype(_F))
    nonzero = (magnitude > (d * _F(0.5))[:, None]) & (d != 0)[:, None]
    trits = nonzero.view(np.uint8) + np.uint8(1)
    trits -= (nonzero & (x < 0)).view(np.uint8) << np.uint8(1)
    return trits, half


def binary_groups(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signs and mean magnitude: the optimum for two levels +-d. Zeros count as positive."""
    half, _ = _to_f16(np.abs(x).mean(axis=1, dtype=np.float64).astype(_F))
    return np.where(x < 0, np.uint8(0), np.uint8(2)), half


def low_bit(x: np.ndarray, type_name: str) -> np.ndarray:
    """Quantise dense groups [n, 128] to a low-bit type: binary for Q1_0, else ternary."""
    trits, scales = binary_groups(x) if type_name == "Q1_0" else ternary_groups(x)
    return blocks.PACK_TRITS[type_name](trits, scales)


def _quantize(x: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "Q8_0":
        return q8_0(x)
    if type_name == "Q4_0":
        return q4_0(x)
    return low_bit(x, type_name)


def quantize(x: np.ndarray, type_name: str) -> np.ndarray:
    """Quantise float32 [n, block] to any block type, in parts that stay in the caches."""
    step = max(1, _PART // x.shape[1])
    parts = [_quantize(x[i : i + step], type_name) for i in range(0, len(x), step)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
