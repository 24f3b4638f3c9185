// SPDX-License-Identifier: Apache-2.0
// rms_norm: out[s, d] = x[s, d] * rsqrt(mean over d of x^2 + eps) * gain[d]. The sum in doubles,
// the product in f32.
#if defined(__aarch64__)
#include <math.h>

#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {

void rms_norm(const RmsNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* gain = row_of(args.gain, 0);
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = row_of(args.x, s);
        float* out = row_of(args.out, s);
        const double squares = row_sums(x, width, 0.0).squares;
        const auto inverse =
            static_cast<float>(1.0 / sqrt(squares / static_cast<double>(width) + args.eps));
        int64_t d = 0;
        for (; d + 4 <= width; d += 4)
            vst1q_f32(out + d,
                      vmulq_f32(vmulq_n_f32(vld1q_f32(x + d), inverse), vld1q_f32(gain + d)));
        const int64_t rest = width - d;
        store_tail(
            out + d, rest,
            vmulq_f32(vmulq_n_f32(load_tail(x + d, rest), inverse), load_tail(gain + d, rest)));
    }
}

} // namespace bonsai::cpu::neon
#endif
