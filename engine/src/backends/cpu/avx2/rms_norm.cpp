// SPDX-License-Identifier: Apache-2.0
// rms_norm: out[s, d] = x[s, d] * rsqrt(mean over d of x^2 + eps) * gain[d]. The sum in doubles,
// the product in f32.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include <math.h>

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

inline __m256 scale8(__m256 x, __m256 gain, __m256 inverse) {
    return _mm256_mul_ps(_mm256_mul_ps(x, inverse), gain);
}

void rms_norm(const RmsNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* gain = row_of(args.gain, 0);
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        const double squares = row_sums(x, width, 0.0).squares;
        const __m256 inverse = _mm256_set1_ps(
            static_cast<float>(1.0 / sqrt(squares / static_cast<double>(width) + args.eps)));
        int64_t d = 0;
        for (; d + 8 <= width; d += 8)
            _mm256_storeu_ps(out + d,
                             scale8(_mm256_loadu_ps(x + d), _mm256_loadu_ps(gain + d), inverse));
        const __m256i mask = tail_mask(width - d);
        _mm256_maskstore_ps(
            out + d, mask,
            scale8(_mm256_maskload_ps(x + d, mask), _mm256_maskload_ps(gain + d, mask), inverse));
    }
}

} // namespace

void overlay_avx2_rms_norm(KernelTable& table) {
    table.rms_norm = rms_norm;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_rms_norm(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
