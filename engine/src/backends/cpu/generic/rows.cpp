// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/rows.h"

namespace bonsai::cpu {

void overlay_generic_rows(KernelTable& table) {
    overlay_generic_rms_norm(table);
    overlay_generic_layer_norm(table);
    overlay_generic_head_norm_rope(table);
    overlay_generic_swiglu(table);
    overlay_generic_silu(table);
    overlay_generic_affine(table);
    overlay_generic_group_norm(table);
}

} // namespace bonsai::cpu
