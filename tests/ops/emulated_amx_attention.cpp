// SPDX-License-Identifier: Apache-2.0
// The AMX attention over emulated tiles, as overlay_emulated_amx_attention_fast. The rest of it is
// AVX-512, whose flags this file is compiled with.
#include <immintrin.h>

#define BONSAI_TILES_HEADER "ops/emulated_tiles.h"
#define overlay_amx_attention_fast overlay_emulated_amx_attention_fast
#include "backends/cpu/amx/attention_fast.cpp"
