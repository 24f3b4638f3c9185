// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d], mean and
// biased variance over d. Two passes over the row with sums in doubles; x - mean in double too,
// exact where a row hardly varies around a large mean.
#if defined(__aarch64__)
#include <math.h>

#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

// (x - mean) * inverse, rounded to f32 last.
inline float32x4_t normalize4(float32x4_t x, float64x2_t mean, double inverse) {
    const float64x2_t low = vmulq_n_f64(vsubq_f64(low_double(x), mean), inverse);
    const float64x2_t high = vmulq_n_f64(vsubq_f64(high_double(x), mean), inverse);
    return vcvt_high_f32_f64(vcvt_f32_f64(low), high);
}

inline float32x4_t modulate4(float32x4_t x, float32x4_t scale, float32x4_t shift) {
    return vfmaq_f32(shift, vaddq_f32(vdupq_n_f32(1.0f), scale), x);
}

} // namespace

void layer_norm(const LayerNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* scale = row_of(args.scale, 0);
    const float* shift = row_of(args.shift, 0);
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        const double average = row_sums(x, width, 0.0).sum / static_cast<double>(width);
        const double variance = row_sums(x, width, average).squares / static_cast<double>(width);
        const float64x2_t mean = vdupq_n_f64(average);
        const double inverse = 1.0 / sqrt(variance + args.eps);
        int64_t d = 0;
        for (; d + 4 <= width; d += 4)
            vst1q_f32(out + d, modulate4(normalize4(vld1q_f32(x + d), mean, inverse),
                                         vld1q_f32(scale + d), vld1q_f32(shift + d)));
        const int64_t rest = width - d;
        store_tail(out + d, rest,
                   modulate4(normalize4(load_tail(x + d, rest), mean, inverse),
                             load_tail(scale + d, rest), load_tail(shift + d, rest)));
    }
}

} // namespace bonsai::cpu::neon
#endif
