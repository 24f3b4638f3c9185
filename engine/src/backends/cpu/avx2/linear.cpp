// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/table.h"

namespace bonsai::cpu {

void overlay_avx2_linear(KernelTable&) {}

} // namespace bonsai::cpu
