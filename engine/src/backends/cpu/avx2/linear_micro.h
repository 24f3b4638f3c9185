// SPDX-License-Identifier: Apache-2.0
// Micro-kernels of linear_fast on 256-bit registers, shared by AVX2 and AVX-VNNI: R x 16 blocks of
// y, 12 accumulators for six rows. What differs, the integer dot products, is a struct `Dot` with
//   run<R, Depth>(rows, codes, acc)   acc[r][h] = dot products over Depth of K, 32 bits, of columns
//                                     8 h .. 8 h + 7
//   kStepBytes                        bytes of a panel for one of K
#pragma once

#include "backends/cpu/avx2/linear_tile.h"

namespace bonsai::cpu::avx2 {
namespace {

inline __m256i load_codes(const void* p) {
    return _mm256_load_si256(static_cast<const __m256i*>(p));
}
inline __m256i broadcast32(const void* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}
// sums += factor * value
inline void add_scaled(float* sums, __m256 value, __m256 factor) {
    _mm256_store_ps(sums, _mm256_fmadd_ps(value, factor, _mm256_load_ps(sums)));
}

// acc[r][h] = sums over Steps of Add(acc, 4 bytes of a panel's 8 columns, 4 bytes of row r). Rows
// of x codes lie RowBytes apart.
template <class Add, int Steps, int RowBytes, int R>
BONSAI_ALWAYS_INLINE void dot_steps(const int8_t* rows, const uint8_t* codes,
                                    __m256i (&acc)[R][2]) {
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    BONSAI_UNROLL(4)
    for (int s = 0; s < Steps; ++s) {
        const __m256i left = load_codes(codes + s * kUnit);
        const __m256i right = load_codes(codes + s * kUnit + 32);
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            const __m256i a = broadcast32(rows + r * RowBytes + 4 * s);
            Add::step(acc[r][0], left, a);
            Add::step(acc[r][1], right, a);
        }
    }
}

// Low-bit codes are one too high: the group's sum of x codes is taken off.
template <class Dot, int R> void multiply_low_bit(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        __m256i acc[R][2];
        Dot::template run<R, kGroup>(u.rows + g * kGroup, u.codes + g * kGroup * Dot::kStepBytes,
                                     acc);
        const __m256 left = _mm256_load_ps(u.scale + g * kPanel);
        const __m256 right = _mm256_load_ps(u.scale + g * kPanel + 8);
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            const __m256i sum = _mm256_set1_epi32(u.x_sum[g * u.x_rows + r]);
            const __m256 scale = _mm256_broadcast_ss(u.x_scale + g * u.x_rows + r);
            const __m256i dot0 = _mm256_sub_epi32(acc[r][0], sum);
            const __m256i dot1 = _mm256_sub_epi32(acc[r][1], sum);
            add_scaled(u.sums + r * kPanel, _mm256_cvtepi32_ps(dot0), _mm256_mul_ps(left, scale));
            add_scaled(u.sums + r * kPanel + 8, _mm256_cvtepi32_ps(dot1),
                       _mm256_mul_ps(right, scale));
        }
    }
}

// The end of a block: its dot products, scaled, to the group's sums. Codes are `Zero` too high;
// types with an Offset (Q4_1) have one a block instead.
template <int R, int Zero, bool Offset>
BONSAI_ALWAYS_INLINE void add_block(const Micro& u, int block, const __m256i (&dot)[R][2],
                                    __m256 (&group)[R][2]) {
    const float* scale = u.scale + block * kPanel;
    const float* offset = u.offset + block * kPanel;
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r) {
        const int32_t x_sum = u.x_block_sum[block * u.x_rows + r];
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            if (Offset)
                group[r][h] =
                    _mm256_fmadd_ps(_mm256_load_ps(offset + 8 * h),
                                    _mm256_cvtepi32_ps(_mm256_set1_epi32(x_sum)), group[r][h]);
            const __m256i above = _mm256_set1_epi32(Zero * x_sum);
            const __m256i exact = Zero != 0 ? _mm256_sub_epi32(dot[r][h], above) : dot[r][h];
            group[r][h] = _mm256_fmadd_ps(_mm256_load_ps(scale + 8 * h), _mm256_cvtepi32_ps(exact),
                                          group[r][h]);
        }
    }
}

template <class Dot, int R, int Zero, bool Offset> void multiply_blocks(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        __m256 group[R][2] = {};
        for (int block = g * kGroupBlocks; block < (g + 1) * kGroupBlocks; ++block) {
            __m256i acc[R][2];
            Dot::template run<R, kBlock>(u.rows + block * kBlock * Dot::kCodeBytes,
                                         u.codes + block * kBlock * Dot::kStepBytes, acc);
            add_block<R, Zero, Offset>(u, block, acc, group);
        }
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            const __m256 scale = _mm256_broadcast_ss(u.x_scale + g * u.x_rows + r);
            add_scaled(u.sums + r * kPanel, group[r][0], scale);
            add_scaled(u.sums + r * kPanel + 8, group[r][1], scale);
        }
    }
}

template <class Dot>
constexpr Multiply kLowBit[6] = {multiply_low_bit<Dot, 1>, multiply_low_bit<Dot, 2>,
                                 multiply_low_bit<Dot, 3>, multiply_low_bit<Dot, 4>,
                                 multiply_low_bit<Dot, 5>, multiply_low_bit<Dot, 6>};
template <class Dot, int Zero, bool Offset>
constexpr Multiply kBlocks[6] = {
    multiply_blocks<Dot, 1, Zero, Offset>, multiply_blocks<Dot, 2, Zero, Offset>,
    multiply_blocks<Dot, 3, Zero, Offset>, multiply_blocks<Dot, 4, Zero, Offset>,
    multiply_blocks<Dot, 5, Zero, Offset>, multiply_blocks<Dot, 6, Zero, Offset>};

} // namespace
} // namespace bonsai::cpu::avx2
