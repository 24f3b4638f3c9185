// SPDX-License-Identifier: Apache-2.0
// The AVX2 entries for linear layers, and the epilogue of their tiles.
#include "backends/cpu/table.h"

#if defined(__AVX2__)
#include <immintrin.h>

#include "backends/cpu/avx2/linear.h"

namespace bonsai::cpu::avx2 {
namespace {

// Lanes 0 .. n - 1.
__m256i first_lanes(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? static_cast<int>(n) : 8), lane);
}

} // namespace

// Whole and cut registers take the same path, so that a value does not depend on where its tile
// begins.
void finish_tile(const float* sums, int64_t tile_rows, const Projection& p, Range rows,
                 Range cols) {
    const float* bias = static_cast<const float*>(p.bias.data);
    const float* gate = static_cast<const float*>(p.gate.data);
    for (int64_t n = cols.begin; n < cols.end; n += 8) {
        const __m256i mask = first_lanes(cols.end - n);
        const __m256 add = bias ? _mm256_maskload_ps(bias + n, mask) : _mm256_setzero_ps();
        const __m256 factor = gate ? _mm256_maskload_ps(gate + n, mask) : _mm256_set1_ps(1.0f);
        const int64_t at = n - cols.begin;
        const float* from = sums + at / kPanel * (tile_rows * kPanel) + at % kPanel;
        float* out = static_cast<float*>(p.out.data) + rows.begin * p.out.stride + n;
        for (int64_t m = rows.begin; m < rows.end; ++m, from += kPanel, out += p.out.stride) {
            __m256 y = _mm256_add_ps(_mm256_load_ps(from), add);
            if (p.accumulate)
                y = _mm256_add_ps(_mm256_maskload_ps(out, mask), _mm256_mul_ps(factor, y));
            _mm256_maskstore_ps(out, mask, y);
        }
    }
}

PieceSize linear_piece(DType weights) {
    if (weights == DType::kQ1_0) return {kBinaryRows, kBinaryCols};
    return {kTileRows, kTileCols};
}

} // namespace bonsai::cpu::avx2

namespace bonsai::cpu {

void overlay_avx2_linear(KernelTable& table) {
    table.dequantize_row = avx2::dequantize_row;
    table.quantize_rows = avx2::quantize_rows;
    table.linear_exact = avx2::linear_exact;
    table.linear_fast = avx2::linear_fast;
    table.linear_piece = avx2::linear_piece;
}

} // namespace bonsai::cpu
#else
void bonsai::cpu::overlay_avx2_linear(KernelTable&) {}
#endif
