// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d], mean and
// biased variance over d. Two passes over the row with sums in doubles; x - mean in double too,
// exact where a row hardly varies around a large mean.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include <math.h>

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

// (x - mean) * inverse, rounded to f32 last.
inline __m256 normalize8(__m256 x, __m256d mean, __m256d inverse) {
    const __m128 low = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(low_double(x), mean), inverse));
    const __m128 high =
        _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(high_double(x), mean), inverse));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

inline __m256 modulate8(__m256 x, __m256 scale, __m256 shift) {
    return _mm256_fmadd_ps(_mm256_add_ps(_mm256_set1_ps(1.0f), scale), x, shift);
}

void layer_norm(const LayerNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* scale = row_of(args.scale, 0);
    const float* shift = row_of(args.shift, 0);
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        const double average = row_sums(x, width, 0.0).sum / static_cast<double>(width);
        const double variance = row_sums(x, width, average).squares / static_cast<double>(width);
        const __m256d mean = _mm256_set1_pd(average);
        const __m256d inverse = _mm256_set1_pd(1.0 / sqrt(variance + args.eps));
        int64_t d = 0;
        for (; d + 8 <= width; d += 8)
            _mm256_storeu_ps(out + d,
                             modulate8(normalize8(_mm256_loadu_ps(x + d), mean, inverse),
                                       _mm256_loadu_ps(scale + d), _mm256_loadu_ps(shift + d)));
        const __m256i mask = tail_mask(width - d);
        _mm256_maskstore_ps(out + d, mask,
                            modulate8(normalize8(_mm256_maskload_ps(x + d, mask), mean, inverse),
                                      _mm256_maskload_ps(scale + d, mask),
                                      _mm256_maskload_ps(shift + d, mask)));
    }
}

} // namespace

void overlay_avx2_layer_norm(KernelTable& table) {
    table.layer_norm = layer_norm;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_layer_norm(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
