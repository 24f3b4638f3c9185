// SPDX-License-Identifier: Apache-2.0
// affine: out[p, c] = affine[0, c] * x[p, c] + affine[1, c]. Reference in double.
#include "backends/cpu/rows.h"

namespace bonsai::cpu {

static void affine(const AffineArgs& args, Range rows) {
    const float* multiplier = args.affine.row(0);
    const float* offset = args.affine.row(1);
    for (int64_t p = rows.begin; p < rows.end; ++p) {
        const float* x = args.x.row(p);
        float* out = args.out.row(p);
        for (int64_t c = 0; c < args.x.cols; ++c)
            out[c] = static_cast<float>(static_cast<double>(multiplier[c]) * x[c] + offset[c]);
    }
}

void overlay_generic_affine(KernelTable& table) {
    table.affine = affine;
}

} // namespace bonsai::cpu
