// SPDX-License-Identifier: Apache-2.0
// head_norm_rope: each head of a row is divided by its root mean square and multiplied by
// gain[head_dim]; then pair i, (a, b), becomes (a cos - b sin, b cos + a sin) with the row's
// cos[i], sin[i]. In place. Reference: plain loops, double arithmetic.
#include <cmath>

#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void rotate_head(const HeadNormRopeArgs& args, float* x, const float* cosine,
                        const float* sine) {
    const float* gain = args.gain.f32();
    const int half = args.head_dim / 2;
    double squares = 0;
    for (int d = 0; d < args.head_dim; ++d)
        squares += static_cast<double>(x[d]) * x[d];
    const double inverse = 1.0 / std::sqrt(squares / args.head_dim + args.eps);
    for (int i = 0; i < half; ++i) {
        const int first = args.pairs == RopePairs::kHalves ? i : 2 * i;
        const int second = args.pairs == RopePairs::kHalves ? i + half : 2 * i + 1;
        const double a = x[first] * inverse * gain[first];
        const double b = x[second] * inverse * gain[second];
        x[first] = static_cast<float>(a * cosine[i] - b * sine[i]);
        x[second] = static_cast<float>(b * cosine[i] + a * sine[i]);
    }
}

static void head_norm_rope(const HeadNormRopeArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s)
        for (int64_t column = 0; column < args.x.cols; column += args.head_dim)
            rotate_head(args, args.x.row(s) + column, args.cos.row(s), args.sin.row(s));
}

void overlay_generic_head_norm_rope(KernelTable& table) {
    table.head_norm_rope = head_norm_rope;
}

} // namespace bonsai::cpu
