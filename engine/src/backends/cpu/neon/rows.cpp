// SPDX-License-Identifier: Apache-2.0
#if defined(__aarch64__)
#include "backends/cpu/neon/rows.h"

namespace bonsai::cpu {

void overlay_neon_rows(KernelTable& table) {
    table.rms_norm = neon::rms_norm;
    table.layer_norm = neon::layer_norm;
    table.head_norm_rope = neon::head_norm_rope;
    table.swiglu = neon::swiglu;
    table.silu = neon::silu;
    table.affine = neon::affine;
    table.group_sums = neon::group_sums;
}

} // namespace bonsai::cpu
#endif
