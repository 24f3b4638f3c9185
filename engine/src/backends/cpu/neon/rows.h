// SPDX-License-Identifier: Apache-2.0
// The NEON kernels that work row by row. For the files of this folder only.
#pragma once

#include "backends/cpu/table.h"

namespace bonsai::cpu::neon {

void rms_norm(const RmsNormArgs& args, Range rows);
void layer_norm(const LayerNormArgs& args, Range rows);
void head_norm_rope(const HeadNormRopeArgs& args, Range rows);
void swiglu(const SwigluArgs& args, Range rows);
void silu(const SiluArgs& args, Range rows);
void affine(const AffineArgs& args, Range rows);
void group_sums(const GroupNormArgs& args, Range pixels, double* sums);

} // namespace bonsai::cpu::neon
