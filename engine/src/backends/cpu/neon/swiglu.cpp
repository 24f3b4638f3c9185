// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up, element by element.
#if defined(__aarch64__)
#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {

void swiglu(const SwigluArgs& args, Range rows) {
    const int64_t width = args.gate.cols;
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* gate = row_of(args.gate, s);
        const float* up = row_of(args.up, s);
        float* out = row_of(args.out, s);
        int64_t d = 0;
        for (; d + 4 <= width; d += 4)
            vst1q_f32(out + d, vmulq_f32(silu4(vld1q_f32(gate + d)), vld1q_f32(up + d)));
        const int64_t rest = width - d;
        store_tail(out + d, rest,
                   vmulq_f32(silu4(load_tail(gate + d, rest)), load_tail(up + d, rest)));
    }
}

} // namespace bonsai::cpu::neon
#endif
