// SPDX-License-Identifier: Apache-2.0
// The AVX-VNNI kernels as overlay_emulated_avxvnni, with AVX-512's encoding of the same
// instruction.
#include <immintrin.h>

#define BONSAI_DOT_256 _mm256_dpbusd_epi32
#define overlay_avxvnni overlay_emulated_avxvnni
#include "backends/cpu/avxvnni/linear.cpp"
