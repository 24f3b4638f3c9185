// SPDX-License-Identifier: Apache-2.0
// One overlay an op for the ops that work row by row; overlay_generic_rows and overlay_avx2_rows
// call those of their level.
#pragma once

#include "backends/cpu/table.h"

namespace bonsai::cpu {

void overlay_generic_rms_norm(KernelTable& table);
void overlay_generic_layer_norm(KernelTable& table);
void overlay_generic_head_norm_rope(KernelTable& table);
void overlay_generic_swiglu(KernelTable& table);
void overlay_generic_silu(KernelTable& table);
void overlay_generic_affine(KernelTable& table);
void overlay_generic_group_norm(KernelTable& table);

void overlay_avx2_rms_norm(KernelTable& table);
void overlay_avx2_layer_norm(KernelTable& table);
void overlay_avx2_head_norm_rope(KernelTable& table);
void overlay_avx2_swiglu(KernelTable& table);
void overlay_avx2_silu(KernelTable& table);
void overlay_avx2_affine(KernelTable& table);
void overlay_avx2_group_norm(KernelTable& table);

} // namespace bonsai::cpu
