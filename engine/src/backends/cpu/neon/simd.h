// SPDX-License-Identifier: Apache-2.0
// What the ARM kernels share: short tails, exp, silu, sums, and the register tile of all float
// products. Everything here is static, so that no code of a higher level can reach other objects
// through the linker.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "backends/cpu/compiler.h"
#include "core/tensor.h"

namespace bonsai::cpu {
namespace {

inline float* row_of(const Tensor& t, int64_t r) {
    return static_cast<float*>(t.data) + r * t.stride;
}

// The first n of 4 lanes (n < 4); the others are zeros when loaded and untouched when stored.
inline float32x4_t load_tail(const float* x, int64_t n) {
    float lanes[4] = {};
    memcpy(lanes, x, static_cast<size_t>(n) * sizeof(float));
    return vld1q_f32(lanes);
}
inline void store_tail(float* out, int64_t n, float32x4_t value) {
    float lanes[4];
    vst1q_f32(lanes, value);
    memcpy(out, lanes, static_cast<size_t>(n) * sizeof(float));
}

// exp, within 8e-8 relative: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor series of degree 7
// (remainder 5e-9), times 2^n. Below -87.33 the result is 0 (no denormals), above 88.37 that of
// 88.37. NaN stays NaN.
inline float32x4_t exp4(float32x4_t x) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    const float32x4_t lowest = vdupq_n_f32(-87.33f);
    const uint32x4_t hidden = vcltq_f32(x, lowest);
    x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(88.37f)), lowest);
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
    // ln 2 in two parts (Cody and Waite 1980); n times the first, which has 9 bits, is exact.
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
    r = vfmaq_f32(r, n, vdupq_n_f32(2.12194440e-4f));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(1.0f / 720.0f), r, vdupq_n_f32(1.0f / 5040.0f));
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(one, p, r);
    p = vfmaq_f32(one, p, r);
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    const float32x4_t value = vmulq_f32(p, vreinterpretq_f32_s32(power));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), hidden));
}

// x / (1 + exp(-x)); 0 below -87.33, where it is less than 1e-36.
inline float32x4_t silu4(float32x4_t x) {
    const uint32x4_t hidden = vcltq_f32(x, vdupq_n_f32(-87.33f));
    const float32x4_t value = vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(x))));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), hidden));
}

inline float64x2_t low_double(float32x4_t x) {
    return vcvt_f64_f32(vget_low_f32(x));
}
inline float64x2_t high_double(float32x4_t x) {
    return vcvt_high_f64_f32(x);
}

struct RowSums {
    double sum;
    double squares;
};

// Sums of (x - centre) and (x - centre)^2 in doubles: reading a row takes longer than converting.
inline RowSums row_sums(const float* x, int64_t n, double centre) {
    const float64x2_t c = vdupq_n_f64(centre);
    float64x2_t sum0 = vdupq_n_f64(0), sum1 = sum0, squares0 = sum0, squares1 = sum0;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t four = vld1q_f32(x + i);
        const float64x2_t a = vsubq_f64(low_double(four), c);
        const float64x2_t b = vsubq_f64(high_double(four), c);
        sum0 = vaddq_f64(sum0, a);
        sum1 = vaddq_f64(sum1, b);
        squares0 = vfmaq_f64(squares0, a, a);
        squares1 = vfmaq_f64(squares1, b, b);
    }
    RowSums result = {vaddvq_f64(vaddq_f64(sum0, sum1)), vaddvq_f64(vaddq_f64(squares0, squares1))};
    for (; i < n; ++i) {
        const double value = x[i] - centre;
        result.sum += value;
        result.squares += value * value;
    }
    return result;
}

// Columns of a panel of float products, and rows that meet it at once: 16 accumulators, 8 registers
// of x (4 of K each) and 2 of the panel, 26 of 32. 64 multiply-adds for 16 loads; 16 independent
// sums cover a latency of 4 cycles on cores that start 4 multiply-adds a cycle.
constexpr int kFloatPanel = 8;
constexpr int kFloatRows = 8;

// acc[r] += x[r, 0..n) * panel[0..n)[8], in the order of K whatever R and n are; rows of x lie
// `stride` apart.
template <int R>
BONSAI_ALWAYS_INLINE void multiply_add(const float* x, int64_t stride, const float* panel,
                                       int64_t n, float32x4_t (&acc)[R][2]) {
    int64_t k = 0;
    for (; k + 4 <= n; k += 4, panel += 4 * kFloatPanel) {
        float32x4_t a[R];
        BONSAI_UNROLL(8)
        for (int r = 0; r < R; ++r)
            a[r] = vld1q_f32(x + r * stride + k);
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            const float* w = panel + 4 * h;
            const float32x4_t w0 = vld1q_f32(w), w1 = vld1q_f32(w + kFloatPanel);
            BONSAI_UNROLL(8)
            for (int r = 0; r < R; ++r) {
                acc[r][h] = vfmaq_laneq_f32(acc[r][h], w0, a[r], 0);
                acc[r][h] = vfmaq_laneq_f32(acc[r][h], w1, a[r], 1);
            }
            const float32x4_t w2 = vld1q_f32(w + 2 * kFloatPanel);
            const float32x4_t w3 = vld1q_f32(w + 3 * kFloatPanel);
            BONSAI_UNROLL(8)
            for (int r = 0; r < R; ++r) {
                acc[r][h] = vfmaq_laneq_f32(acc[r][h], w2, a[r], 2);
                acc[r][h] = vfmaq_laneq_f32(acc[r][h], w3, a[r], 3);
            }
        }
    }
    for (; k < n; ++k, panel += kFloatPanel) {
        const float32x4_t w0 = vld1q_f32(panel), w1 = vld1q_f32(panel + 4);
        BONSAI_UNROLL(8)
        for (int r = 0; r < R; ++r) {
            acc[r][0] = vfmaq_n_f32(acc[r][0], w0, x[r * stride + k]);
            acc[r][1] = vfmaq_n_f32(acc[r][1], w1, x[r * stride + k]);
        }
    }
}

} // namespace
} // namespace bonsai::cpu

#endif // __aarch64__
