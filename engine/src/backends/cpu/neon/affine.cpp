// SPDX-License-Identifier: Apache-2.0
// affine: out[p, c] = affine[0, c] * x[p, c] + affine[1, c], one fused multiply-add a number.
#if defined(__aarch64__)
#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {

void affine(const AffineArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* multiplier = row_of(args.affine, 0);
    const float* offset = row_of(args.affine, 1);
    for (int64_t p = rows.begin; p < rows.end; ++p) {
        const float* x = row_of(args.x, p);
        float* out = row_of(args.out, p);
        int64_t c = 0;
        for (; c + 4 <= width; c += 4)
            vst1q_f32(out + c, vfmaq_f32(vld1q_f32(offset + c), vld1q_f32(multiplier + c),
                                         vld1q_f32(x + c)));
        const int64_t rest = width - c;
        store_tail(out + c, rest,
                   vfmaq_f32(load_tail(offset + c, rest), load_tail(multiplier + c, rest),
                             load_tail(x + c, rest)));
    }
}

} // namespace bonsai::cpu::neon
#endif
