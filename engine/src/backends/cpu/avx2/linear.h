// SPDX-License-Identifier: Apache-2.0
// What the two AVX2 products share. A piece is computed tile by tile: up to kTileRows x kTileCols
// sums in scratch, for which one K-block of weights at a time is unpacked. For the files of this
// folder only.
#pragma once

#include <immintrin.h>

#include "backends/cpu/avx2/unpack.h"

namespace bonsai::cpu::avx2 {

constexpr int kTileCols = 64;
constexpr int kTileRows = 512;
constexpr int kTilePanels = kTileCols / kPanel;
// Rows x columns of the micro-kernels: 6 x 16 takes 12 accumulators, two weights, an activation and
// a product, all 16 registers.
constexpr int kMicroRows = 6;
// A tile of binary weights (linear_binary.cpp).
constexpr int kBinaryRows = 128;
constexpr int kBinaryCols = 768;

namespace {
inline int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}
} // namespace

// The steps of the inner loops, accumulator in place. Plain intrinsics make gcc 12 keep two copies
// of the accumulators of an unrolled loop, half of them in memory, which costs a third of the
// speed.
namespace {
#if defined(__GNUC__)
inline void add8(__m256i& sum, __m256i v) {
    __asm__("vpaddb %1, %0, %0" : "+x"(sum) : "x"(v));
}
inline void add16(__m256i& sum, __m256i v) {
    __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(v));
}
inline void add32(__m256i& sum, __m256i v) {
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(v));
}
inline void multiply_add(__m256& sum, __m256 a, __m256 b) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}
#else
inline void add8(__m256i& sum, __m256i v) {
    sum = _mm256_add_epi8(sum, v);
}
inline void add16(__m256i& sum, __m256i v) {
    sum = _mm256_add_epi16(sum, v);
}
inline void add32(__m256i& sum, __m256i v) {
    sum = _mm256_add_epi32(sum, v);
}
inline void multiply_add(__m256& sum, __m256 a, __m256 b) {
    sum = _mm256_fmadd_ps(a, b, sum);
}
#endif
} // namespace

void quantize_rows(const Tensor& x, const QuantizedRows& out, Range rows);
bool linear_exact(const Tensor& x, const Projection& p, Range rows, Range cols, Scratch& scratch);
bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch);
// linear_fast for weights in Q1_0.
bool linear_binary(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                   Scratch& scratch);
PieceSize linear_piece(DType weights);

// Epilogue of a tile: sums [panels, tile_rows, kPanel] + bias, stored or added to `out`.
void finish_tile(const float* sums, int64_t tile_rows, const Projection& p, Range rows, Range cols);

} // namespace bonsai::cpu::avx2
