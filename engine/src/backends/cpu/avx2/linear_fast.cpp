// SPDX-License-Identifier: Apache-2.0
// linear_fast: y[M,N] = x[M,K] * W[N,K]^T, x in int8 with a scale a token and group of 128
// Layout:   x codes row-major; W packed, unpacked to panels of 16 columns (linear_tile.h).
// Maths:    integer dot products of 6 x 16 blocks of y over a group, or a block of 32 of K.
//           Low-bit codes 0..3: a vpmaddubsw pair is at most 2 * 3 * 127, so the 32 of a group stay
//           below 2^15: summed in 16 bits, then joined by vpmaddwd, less the group's sum of x codes
//           (weight codes are one too high). y += x_scale * w_scale * dot.
//           Q4_0, Q4_1: 2 * 15 * 127 * 8 = 30480 a block, also in 16 bits. Q8_0: vpmaddwd.
//           y += x_scale * (sum over 4 blocks of w_scale * dot + w_offset * x_sum).
//           Binary weights: linear_binary.cpp.
// Work:     a tile unpacks each weight once for up to 512 rows; its panels (16 KB, 32 KB for Q8_0)
//           stay near L1 for all of them.
// Roofline: compute-bound: vpmaddubsw and vpaddw do 32 products; cores with four vector units start
//           two such pairs a cycle.
#if defined(__AVX2__)
#include "backends/cpu/avx2/linear_micro.h"

namespace bonsai::cpu::avx2 {
namespace {

struct Tile {
    static constexpr int kTileRows = 512, kTileCols = 64, kDepth = 256;
    static constexpr int kMicroRows = 6, kMicroPanels = 1;
    static constexpr bool kWide = true;
    static Form form(DType dtype) { return {kMicroRows, dtype == DType::kQ8_0, 0}; }
    static const Multiply* kernels(DType dtype);
};

// Unsigned bytes up to 15, 4 of K a step, sums in 16 bits.
struct BytesDot {
    static constexpr int kCodeBytes = 1, kStepBytes = kUnit / 4;
    static BONSAI_ALWAYS_INLINE void step(__m256i& sum, __m256i codes, __m256i x) {
        add16(sum, _mm256_maddubs_epi16(codes, x));
    }
    template <int R, int Depth>
    static BONSAI_ALWAYS_INLINE void run(const int8_t* rows, const uint8_t* codes,
                                         __m256i (&acc)[R][2]) {
        dot_steps<BytesDot, Depth / 4, Tile::kDepth>(rows, codes, acc);
        const __m256i ones = _mm256_set1_epi16(1);
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            acc[r][0] = _mm256_madd_epi16(acc[r][0], ones);
            acc[r][1] = _mm256_madd_epi16(acc[r][1], ones);
        }
    }
};

// Shorts, 2 of K a step, sums in 32 bits.
struct ShortsDot {
    static constexpr int kCodeBytes = 2, kStepBytes = kUnit / 2;
    static BONSAI_ALWAYS_INLINE void step(__m256i& sum, __m256i codes, __m256i x) {
        add32(sum, _mm256_madd_epi16(codes, x));
    }
    template <int R, int Depth>
    static BONSAI_ALWAYS_INLINE void run(const int8_t* rows, const uint8_t* codes,
                                         __m256i (&acc)[R][2]) {
        dot_steps<ShortsDot, Depth / 2, 2 * Tile::kDepth>(rows, codes, acc);
    }
};

const Multiply* Tile::kernels(DType dtype) {
    if (dtype == DType::kQ8_0) return kBlocks<ShortsDot, 0, false>;
    if (dtype == DType::kQ4_0) return kBlocks<BytesDot, 8, false>;
    if (dtype == DType::kQ4_1) return kBlocks<BytesDot, 0, true>;
    return kLowBit<BytesDot>;
}

} // namespace

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    if (p.weight.dtype == DType::kQ1_0) return linear_binary(x, p, rows, cols, scratch);
    return fast_piece<Tile>(x, p, rows, cols, scratch);
}

} // namespace bonsai::cpu::avx2
#endif
