// SPDX-License-Identifier: Apache-2.0
// silu: out = x / (1 + exp(-x)), element by element.
#if defined(__aarch64__)
#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {

void silu(const SiluArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        int64_t d = 0;
        for (; d + 4 <= args.x.cols; d += 4)
            vst1q_f32(out + d, silu4(vld1q_f32(x + d)));
        const int64_t rest = args.x.cols - d;
        store_tail(out + d, rest, silu4(load_tail(x + d, rest)));
    }
}

} // namespace bonsai::cpu::neon
#endif
