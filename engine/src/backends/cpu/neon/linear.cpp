// SPDX-License-Identifier: Apache-2.0
// The NEON entries for linear layers, and the epilogue of their tiles.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear.h"

#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {

// Whole and cut registers take the same operations, so that a value does not depend on where its
// tile begins.
void finish_row(const float* sums, const Projection& p, int64_t row, int64_t begin, int64_t end) {
    const float* bias = static_cast<const float*>(p.bias.data);
    const float* gate = static_cast<const float*>(p.gate.data);
    float* out = row_of(p.out, row);
    const float32x4_t zero = vdupq_n_f32(0.0f), one = vdupq_n_f32(1.0f);
    int64_t n = begin;
    for (; n + 4 <= end; n += 4) {
        float32x4_t y = vaddq_f32(vld1q_f32(sums + n - begin), bias ? vld1q_f32(bias + n) : zero);
        if (p.accumulate)
            y = vaddq_f32(vld1q_f32(out + n), vmulq_f32(gate ? vld1q_f32(gate + n) : one, y));
        vst1q_f32(out + n, y);
    }
    const int64_t rest = end - n;
    float32x4_t y =
        vaddq_f32(load_tail(sums + n - begin, rest), bias ? load_tail(bias + n, rest) : zero);
    if (p.accumulate)
        y = vaddq_f32(load_tail(out + n, rest),
                      vmulq_f32(gate ? load_tail(gate + n, rest) : one, y));
    store_tail(out + n, rest, y);
}

} // namespace bonsai::cpu::neon

namespace bonsai::cpu {

void overlay_neon_linear(KernelTable& table) {
    table.dequantize_row = neon::dequantize_row;
    table.quantize_rows = neon::quantize_rows;
    table.linear_exact = neon::linear_exact;
    table.linear_fast = neon::linear_fast;
    table.linear_piece = [](DType) -> PieceSize { return {neon::kTileRows, neon::kTileCols}; };
}

} // namespace bonsai::cpu
#endif
