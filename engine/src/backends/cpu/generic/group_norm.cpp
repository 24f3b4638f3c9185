// SPDX-License-Identifier: Apache-2.0
// group_sums: the sum and the sum of squares of each channel group over some pixels, added to
// sums[2 g], sums[2 g + 1]. The backend adds chunks of a fixed size in order and forms var = E[x^2]
// - mean^2 in double. Reference in double.
#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void group_sums(const GroupNormArgs& args, Range pixels, double* sums) {
    const int64_t group_channels = args.x.cols / args.groups;
    for (int64_t p = pixels.begin; p < pixels.end; ++p) {
        const float* x = args.x.row(p);
        for (int g = 0; g < args.groups; ++g) {
            for (int64_t c = g * group_channels; c < (g + 1) * group_channels; ++c) {
                sums[2 * g] += x[c];
                sums[2 * g + 1] += static_cast<double>(x[c]) * x[c];
            }
        }
    }
}

void overlay_generic_group_norm(KernelTable& table) {
    table.group_sums = group_sums;
}

} // namespace bonsai::cpu
