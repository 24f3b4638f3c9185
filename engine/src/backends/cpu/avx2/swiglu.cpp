// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up, element by element.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

void swiglu(const SwigluArgs& args, Range rows) {
    const int64_t width = args.gate.cols;
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* gate = row_of(args.gate, s);
        const float* up = row_of(args.up, s);
        float* out = row_of(args.out, s);
        int64_t d = 0;
        for (; d + 8 <= width; d += 8)
            _mm256_storeu_ps(
                out + d, _mm256_mul_ps(silu8(_mm256_loadu_ps(gate + d)), _mm256_loadu_ps(up + d)));
        const __m256i mask = tail_mask(width - d);
        const __m256 activated = silu8(_mm256_maskload_ps(gate + d, mask));
        _mm256_maskstore_ps(out + d, mask,
                            _mm256_mul_ps(activated, _mm256_maskload_ps(up + d, mask)));
    }
}

} // namespace

void overlay_avx2_swiglu(KernelTable& table) {
    table.swiglu = swiglu;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_swiglu(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
