// SPDX-License-Identifier: Apache-2.0
// The AMX linear kernels over emulated tiles, as overlay_emulated_amx_linear. The rest of them is
// AVX-512, whose flags this file is compiled with.
#include <immintrin.h>

#define BONSAI_TILES_HEADER "ops/emulated_tiles.h"
#define overlay_amx_linear overlay_emulated_amx_linear
#include "backends/cpu/amx/linear.cpp"
