// SPDX-License-Identifier: Apache-2.0
// The instruction sets of this processor, and the kernel level that follows from them.
#pragma once

#include <vector>

#include "backends/cpu/table.h"
#include "core/status.h"

namespace bonsai::cpu {

// One bit for each set that a level needs. A set counts only if the operating system saves its
// registers too.
constexpr uint32_t kFeatureAvx2 = 1u << 0;     // AVX2, FMA and F16C
constexpr uint32_t kFeatureAvxVnni = 1u << 1;  // AVX-VNNI: vpdpbusd on 256 bits, VEX-coded
constexpr uint32_t kFeatureAvx512 = 1u << 2;   // AVX-512 F, BW, DQ, VL and VNNI
constexpr uint32_t kFeatureAmx = 1u << 3;      // AMX tiles, int8 and bf16 products; AVX-512 BF16
constexpr uint32_t kFeatureNeon = 1u << 16;    // every 64-bit ARM processor has it
constexpr uint32_t kFeatureDotprod = 1u << 17; // FEAT_DotProd: sdot
constexpr uint32_t kFeatureI8mm = 1u << 18;    // FEAT_I8MM: smmla

// The sets of the processor at hand.
uint32_t detected_features();

// True when `features` hold all that `level` and the levels below it need.
bool supports(uint32_t features, Level level);

// The levels that `features` allow, worst first; generic is always there.
std::vector<Level> levels_of(uint32_t features);

// The best of levels_of(features) that need not be asked for by name.
Level best_level(uint32_t features);

// The level named `wanted`, or best_level() when it is null or empty. An unknown name, or a level
// that the features do not allow, is an error.
Status choose_level(uint32_t features, const char* wanted, Level* out);

// choose_level for this processor and the environment variable BONSAI_CPU.
Status chosen_level(Level* out);

} // namespace bonsai::cpu
