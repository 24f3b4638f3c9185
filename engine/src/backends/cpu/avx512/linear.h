// SPDX-License-Identifier: Apache-2.0
// The AVX-512 product as the level above it calls it.
#pragma once

#include "backends/cpu/table.h"

namespace bonsai::cpu::avx512 {

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch);

} // namespace bonsai::cpu::avx512
