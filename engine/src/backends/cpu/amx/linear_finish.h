// SPDX-License-Identifier: Apache-2.0
// The end of a block of y: its sums, panel by panel, become rows of y.
// Maths:    avx2::finish_tile, for the same bits.
// Work:     row by row over all columns: a row of y lies in a page of its own, and 16 columns are a
//           whole line of it, which is written without being read in parts.
#pragma once

#include <immintrin.h>

#include "backends/cpu/table.h"

namespace bonsai::cpu::amx {
namespace {

// sums [panels, panel_rows, 16] + bias, stored or added to `out`.
inline void finish_rows(const float* sums, int64_t panel_rows, const Projection& p, Range rows,
                        Range cols) {
    constexpr int kLanes = 16;
    const float* bias = static_cast<const float*>(p.bias.data);
    const float* gate = static_cast<const float*>(p.gate.data);
    for (int64_t m = rows.begin; m < rows.end; ++m, sums += kLanes) {
        float* out = static_cast<float*>(p.out.data) + m * p.out.stride;
        const float* from = sums;
        for (int64_t n = cols.begin; n < cols.end; n += kLanes, from += panel_rows * kLanes) {
            const int64_t left = cols.end - n;
            const auto mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xffff);
            const __m512 add = bias ? _mm512_maskz_loadu_ps(mask, bias + n) : _mm512_setzero_ps();
            __m512 y = _mm512_add_ps(_mm512_load_ps(from), add);
            if (p.accumulate) {
                if (gate) y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, gate + n), y);
                y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out + n), y);
            }
            _mm512_mask_storeu_ps(out + n, mask, y);
        }
    }
}

} // namespace
} // namespace bonsai::cpu::amx
