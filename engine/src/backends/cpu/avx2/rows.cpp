// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/rows.h"

namespace bonsai::cpu {

void overlay_avx2_rows(KernelTable& table) {
    overlay_avx2_rms_norm(table);
    overlay_avx2_layer_norm(table);
    overlay_avx2_head_norm_rope(table);
    overlay_avx2_swiglu(table);
    overlay_avx2_silu(table);
    overlay_avx2_affine(table);
    overlay_avx2_group_norm(table);
}

} // namespace bonsai::cpu
