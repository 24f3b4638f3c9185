// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up, element by element. Reference in double.
#include <cmath>

#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void swiglu(const SwigluArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        const float* gate = args.gate.row(s);
        const float* up = args.up.row(s);
        float* out = args.out.row(s);
        for (int64_t d = 0; d < args.gate.cols; ++d) {
            const double g = gate[d];
            out[d] = static_cast<float>(g / (1.0 + std::exp(-g)) * up[d]);
        }
    }
}

void overlay_generic_swiglu(KernelTable& table) {
    table.swiglu = swiglu;
}

} // namespace bonsai::cpu
