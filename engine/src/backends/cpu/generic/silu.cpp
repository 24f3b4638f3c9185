// SPDX-License-Identifier: Apache-2.0
// silu: out = x / (1 + exp(-x)), element by element. Reference in double.
#include <cmath>

#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void silu(const SiluArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* x = args.x.row(s);
        float* out = args.out.row(s);
        for (int64_t d = 0; d < args.x.cols; ++d) {
            const double value = x[d];
            out[d] = static_cast<float>(value / (1.0 + std::exp(-value)));
        }
    }
}

void overlay_generic_silu(KernelTable& table) {
    table.silu = silu;
}

} // namespace bonsai::cpu
