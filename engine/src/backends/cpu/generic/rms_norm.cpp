// SPDX-License-Identifier: Apache-2.0
// rms_norm: out[s, d] = x[s, d] * rsqrt(mean over d of x^2 + eps) * gain[d]. Reference: plain
// loops, double sums.
#include <cmath>

#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void rms_norm(const RmsNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* gain = args.gain.f32();
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = args.x.row(s);
        float* out = args.out.row(s);
        double squares = 0;
        for (int64_t d = 0; d < width; ++d)
            squares += static_cast<double>(x[d]) * x[d];
        const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + args.eps);
        for (int64_t d = 0; d < width; ++d)
            out[d] = static_cast<float>(x[d] * inverse * gain[d]);
    }
}

void overlay_generic_rms_norm(KernelTable& table) {
    table.rms_norm = rms_norm;
}

} // namespace bonsai::cpu
