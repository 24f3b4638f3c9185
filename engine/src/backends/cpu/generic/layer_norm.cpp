// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d], mean and
// biased variance over d. Reference: two passes over the row, double sums.
#include <cmath>

#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void layer_norm(const LayerNormArgs& args, Range rows) {
    const int64_t width = args.x.cols;
    const float* scale = args.scale.f32();
    const float* shift = args.shift.f32();
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = args.x.row(s);
        float* out = args.out.row(s);
        double sum = 0;
        for (int64_t d = 0; d < width; ++d)
            sum += x[d];
        const double mean = sum / static_cast<double>(width);
        double squares = 0;
        for (int64_t d = 0; d < width; ++d)
            squares += (x[d] - mean) * (x[d] - mean);
        const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + args.eps);
        for (int64_t d = 0; d < width; ++d)
            out[d] = static_cast<float>((1.0 + scale[d]) * ((x[d] - mean) * inverse) + shift[d]);
    }
}

void overlay_generic_layer_norm(KernelTable& table) {
    table.layer_norm = layer_norm;
}

} // namespace bonsai::cpu
