// SPDX-License-Identifier: Apache-2.0
// silu: out = x / (1 + exp(-x)), element by element.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

void silu(const SiluArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        int64_t d = 0;
        for (; d + 8 <= args.x.cols; d += 8)
            _mm256_storeu_ps(out + d, silu8(_mm256_loadu_ps(x + d)));
        const __m256i mask = tail_mask(args.x.cols - d);
        _mm256_maskstore_ps(out + d, mask, silu8(_mm256_maskload_ps(x + d, mask)));
    }
}

} // namespace

void overlay_avx2_silu(KernelTable& table) {
    table.silu = silu;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_silu(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
