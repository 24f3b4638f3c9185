// SPDX-License-Identifier: Apache-2.0
// affine: out[p, c] = affine[0, c] * x[p, c] + affine[1, c], one fused multiply-add a number.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

void affine(const AffineArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* multiplier = row_of(args.affine, 0);
    const float* offset = row_of(args.affine, 1);
    for (int64_t p = rows.begin; p < rows.end; ++p) {
        const float* x = row_of(args.x, p);
        float* out = row_of(args.out, p);
        int64_t c = 0;
        for (; c + 8 <= width; c += 8)
            _mm256_storeu_ps(out + c,
                             _mm256_fmadd_ps(_mm256_loadu_ps(multiplier + c),
                                             _mm256_loadu_ps(x + c), _mm256_loadu_ps(offset + c)));
        const __m256i mask = tail_mask(width - c);
        _mm256_maskstore_ps(out + c, mask,
                            _mm256_fmadd_ps(_mm256_maskload_ps(multiplier + c, mask),
                                            _mm256_maskload_ps(x + c, mask),
                                            _mm256_maskload_ps(offset + c, mask)));
    }
}

} // namespace

void overlay_avx2_affine(KernelTable& table) {
    table.affine = affine;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_affine(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
