// SPDX-License-Identifier: Apache-2.0
// linear_fast: y[M,N] = x[M,K] * W[N,K]^T, x in int8 with a scale a token and group of 128
// Layout:   x codes row-major. W packed; 64 rows x 256 of K at a time are unpacked to panels in
//           scratch: for every 4 of K, 16 columns of 4 unsigned bytes (for Q8_0 for every 2 of K,
//           16 columns of 2 shorts), so that one register holds 8 columns.
// Maths:    integer dot products of 6 x 16 blocks of y over a group, or a block of 32 of K.
//           Low-bit codes 0..3: a vpmaddubsw pair is at most 2 * 3 * 127, so the 32 of a group stay
//           below 2^15: summed in 16 bits, then joined by vpmaddwd, less the group's sum of x codes
//           (weight codes are one too high). y += x_scale * w_scale * dot.
//           Q4_0, Q4_1: 2 * 15 * 127 * 8 = 30480 a block, also in 16 bits. Q8_0: vpmaddwd.
//           y += x_scale * (sum over 4 blocks of w_scale * dot + w_offset * x_sum).
// Work:     a tile unpacks each weight once for up to 512 rows; its panels (16 KB, 32 KB for Q8_0)
//           stay near L1 for all of them.
// Roofline: compute-bound: vpmaddubsw and vpaddw do 32 products; cores with four vector units start
//           two such pairs a cycle.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

#include "backends/cpu/avx2/linear.h"

namespace bonsai::cpu::avx2 {
namespace {

constexpr int kDepth = 256;
constexpr int kDepthGroups = kDepth / kGroup;
constexpr int kGroupBlocks = kGroup / kBlock;
constexpr int kUnit = 64; // bytes that 16 columns of 4 byte codes, or of 2 short ones, take

struct Layout {
    alignas(64) uint8_t codes[kTilePanels][kDepth / 2 * kUnit];    // half of it used but for Q8_0
    alignas(64) float scale[kTilePanels][kDepth / kBlock][kPanel]; // by group for the low-bit types
    alignas(64) float offset[kTilePanels][kDepth / kBlock][kPanel];
    alignas(64) float sums[kTilePanels][kTileRows][kPanel];
    // x codes of the micro-kernel's rows, as bytes, or as shorts for Q8_0. Side by side here, their
    // distances are constants.
    alignas(64) int8_t rows[kMicroRows][kDepth];
    alignas(64) int16_t wide_rows[kMicroRows][kDepth];
};

// Operands of a micro-kernel, at its first row, group and column.
struct Micro {
    const int8_t* rows;
    const int16_t* wide_rows;
    const float* x_scale;
    const int32_t* x_sum;
    const int32_t* x_block_sum;
    int64_t x_rows;
    const uint8_t* codes;
    const float* scale;
    const float* offset;
    float* sums;
    int groups;
};

__m256i load(const void* p) {
    return _mm256_load_si256(static_cast<const __m256i*>(p));
}
__m256i broadcast32(const void* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}
// sums += factor * value
void add_scaled(float* sums, __m256 value, __m256 factor) {
    _mm256_store_ps(sums, _mm256_fmadd_ps(value, factor, _mm256_load_ps(sums)));
}

// Steps of 4 along K with 16-bit sums.
template <int R, int Steps>
inline __attribute__((always_inline)) void dot_bytes(const int8_t* rows, const uint8_t* codes,
                                                     __m256i (&acc)[R][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int s = 0; s < Steps; ++s) {
        const __m256i left = load(codes + s * kUnit);
        const __m256i right = load(codes + s * kUnit + 32);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const __m256i a = broadcast32(rows + r * kDepth + 4 * s);
            add16(acc[r][0], _mm256_maddubs_epi16(left, a));
            add16(acc[r][1], _mm256_maddubs_epi16(right, a));
        }
    }
}

// Steps of 2 along K with 32-bit sums.
template <int R, int Steps>
inline __attribute__((always_inline)) void dot_shorts(const int16_t* rows, const uint8_t* codes,
                                                      __m256i (&acc)[R][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int s = 0; s < Steps; ++s) {
        const __m256i left = load(codes + s * kUnit);
        const __m256i right = load(codes + s * kUnit + 32);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const __m256i a = broadcast32(rows + r * kDepth + 2 * s);
            add32(acc[r][0], _mm256_madd_epi16(left, a));
            add32(acc[r][1], _mm256_madd_epi16(right, a));
        }
    }
}

template <int R> void multiply_low_bit(const Micro& u) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int g = 0; g < u.groups; ++g) {
        __m256i acc[R][2];
        dot_bytes<R, kGroup / 4>(u.rows + g * kGroup, u.codes + g * (kGroup / 4) * kUnit, acc);
        const __m256 left = _mm256_load_ps(u.scale + g * kPanel);
        const __m256 right = _mm256_load_ps(u.scale + g * kPanel + 8);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const __m256i sum = _mm256_set1_epi32(u.x_sum[g * u.x_rows + r]);
            const __m256 scale = _mm256_broadcast_ss(u.x_scale + g * u.x_rows + r);
            const __m256i dot0 = _mm256_sub_epi32(_mm256_madd_epi16(acc[r][0], ones), sum);
            const __m256i dot1 = _mm256_sub_epi32(_mm256_madd_epi16(acc[r][1], ones), sum);
            add_scaled(u.sums + r * kPanel, _mm256_cvtepi32_ps(dot0), _mm256_mul_ps(left, scale));
            add_scaled(u.sums + r * kPanel + 8, _mm256_cvtepi32_ps(dot1),
                       _mm256_mul_ps(right, scale));
        }
    }
}

// The end of a block: its 32-bit dot products, scaled, with the offset's share, to the group's
// sums.
template <int R, bool Offset>
inline __attribute__((always_inline)) void
add_block(const Micro& u, int block, const __m256i (&dot)[R][2], __m256 (&group)[R][2]) {
    const float* scale = u.scale + block * kPanel;
    const float* offset = u.offset + block * kPanel;
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
        const __m256 sum =
            _mm256_cvtepi32_ps(_mm256_set1_epi32(u.x_block_sum[block * u.x_rows + r]));
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            if (Offset)
                group[r][h] = _mm256_fmadd_ps(_mm256_load_ps(offset + 8 * h), sum, group[r][h]);
            group[r][h] = _mm256_fmadd_ps(_mm256_load_ps(scale + 8 * h),
                                          _mm256_cvtepi32_ps(dot[r][h]), group[r][h]);
        }
    }
}

template <int R>
inline __attribute__((always_inline)) void add_group(const Micro& u, int g,
                                                     const __m256 (&group)[R][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
        const __m256 scale = _mm256_broadcast_ss(u.x_scale + g * u.x_rows + r);
        add_scaled(u.sums + r * kPanel, group[r][0], scale);
        add_scaled(u.sums + r * kPanel + 8, group[r][1], scale);
    }
}

template <int R> void multiply_nibbles(const Micro& u) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int g = 0; g < u.groups; ++g) {
        __m256 group[R][2] = {};
        for (int block = g * kGroupBlocks; block < (g + 1) * kGroupBlocks; ++block) {
            __m256i acc[R][2];
            dot_bytes<R, kBlock / 4>(u.rows + block * kBlock,
                                     u.codes + block * (kBlock / 4) * kUnit, acc);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                acc[r][0] = _mm256_madd_epi16(acc[r][0], ones);
                acc[r][1] = _mm256_madd_epi16(acc[r][1], ones);
            }
            add_block<R, true>(u, block, acc, group);
        }
        add_group<R>(u, g, group);
    }
}

template <int R> void multiply_bytes(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        __m256 group[R][2] = {};
        for (int block = g * kGroupBlocks; block < (g + 1) * kGroupBlocks; ++block) {
            __m256i acc[R][2];
            dot_shorts<R, kBlock / 2>(u.wide_rows + block * kBlock,
                                      u.codes + block * (kBlock / 2) * kUnit, acc);
            add_block<R, false>(u, block, acc, group);
        }
        add_group<R>(u, g, group);
    }
}

using Multiply = void (*)(const Micro&);
constexpr Multiply kLowBit[kMicroRows] = {multiply_low_bit<1>, multiply_low_bit<2>,
                                          multiply_low_bit<3>, multiply_low_bit<4>,
                                          multiply_low_bit<5>, multiply_low_bit<6>};
constexpr Multiply kNibbles[kMicroRows] = {multiply_nibbles<1>, multiply_nibbles<2>,
                                           multiply_nibbles<3>, multiply_nibbles<4>,
                                           multiply_nibbles<5>, multiply_nibbles<6>};
constexpr Multiply kBytes[kMicroRows] = {multiply_bytes<1>, multiply_bytes<2>, multiply_bytes<3>,
                                         multiply_bytes<4>, multiply_bytes<5>, multiply_bytes<6>};

// One group of up to 8 weight rows to half a panel; missing rows become zeros.
void unpack_half_panel(const Tensor& w, Range cols, int64_t k, int g, int64_t at, Layout* layout) {
    const DTypeInfo& info = dtype_info(w.dtype);
    const auto* data = static_cast<const uint8_t*>(w.data);
    const int64_t panel = at / kPanel, column = at % kPanel;
    const int parts = info.block == kGroup ? 1 : kGroupBlocks;
    alignas(32) uint8_t rows[8][kGroup];
    for (int i = 0; i < 8; ++i) {
        GroupScales scales = {};
        if (cols.begin + i < cols.end) {
            const int64_t block = ((cols.begin + i) * w.stride + k) / info.block;
            unpack_group(w.dtype, data + block * info.bytes, rows[i], &scales);
        } else {
            std::memset(rows[i], 0, sizeof rows[i]);
        }
        for (int b = 0; b < parts; ++b) {
            layout->scale[panel][g * parts + b][column + i] = scales.scale[b];
            layout->offset[panel][g * parts + b][column + i] = scales.offset[b];
        }
    }
    uint8_t* codes = layout->codes[panel] + column * 4;
    if (w.dtype != DType::kQ8_0)
        return interleave(rows, kGroup, kGroup / 4, codes + g * (kGroup / 4) * kUnit);
    alignas(32) int16_t wide[8][kGroup];
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < kGroup; j += 16)
            _mm256_store_si256(reinterpret_cast<__m256i*>(wide[i] + j),
                               _mm256_cvtepi8_epi16(
                                   _mm_load_si128(reinterpret_cast<const __m128i*>(rows[i] + j))));
    interleave(wide, sizeof wide[0], kGroup / 2, codes + g * (kGroup / 2) * kUnit);
}

void unpack(const Tensor& w, Range cols, int64_t k, int groups, Layout* layout) {
    for (int64_t n = cols.begin; n < cols.end; n += 8)
        for (int g = 0; g < groups; ++g)
            unpack_half_panel(w, {n, cols.end}, k + g * kGroup, g, n - cols.begin, layout);
}

void copy_rows(const int8_t* q, int64_t stride, int64_t rows, int depth, bool wide,
               Layout* layout) {
    for (int64_t r = 0; r < rows; ++r, q += stride)
        for (int j = 0; j < depth; j += 32) {
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + j));
            if (!wide) {
                _mm256_store_si256(reinterpret_cast<__m256i*>(layout->rows[r] + j), codes);
                continue;
            }
            auto* to = reinterpret_cast<__m256i*>(layout->wide_rows[r] + j);
            _mm256_store_si256(to, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)));
            _mm256_store_si256(to + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1)));
        }
}

// The next rows: too short a run of each row for the hardware to foresee.
void prefetch(const QuantizedRows& x, int64_t m, int64_t end, int64_t k) {
    end = m + kMicroRows < end ? m + kMicroRows : end;
    for (; m < end; ++m)
        for (int64_t j = k; j < k + kDepth; j += 64)
            _mm_prefetch(reinterpret_cast<const char*>(x.q + m * x.stride + j), _MM_HINT_T0);
}

void tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols, Layout* layout) {
    const DType dtype = p.weight.dtype;
    const Multiply* kernels = dtype_info(dtype).block == kGroup ? kLowBit
                              : dtype == DType::kQ8_0           ? kBytes
                                                                : kNibbles;
    const int64_t panels = (cols.end - cols.begin + kPanel - 1) / kPanel;
    for (int64_t i = 0; i < panels; ++i)
        std::memset(layout->sums[i], 0,
                    sizeof layout->sums[i][0] * static_cast<size_t>(rows.end - rows.begin));
    for (int64_t k = 0; k < x.cols; k += kDepth) {
        const int64_t left = (x.cols - k) / kGroup;
        const int groups = left < kDepthGroups ? static_cast<int>(left) : kDepthGroups;
        unpack(p.weight, cols, k, groups, layout);
        for (int64_t m = rows.begin; m < rows.end; m += kMicroRows) {
            const int64_t count = rows.end - m < kMicroRows ? rows.end - m : kMicroRows;
            copy_rows(x.q + m * x.stride + k, x.stride, count, groups * kGroup,
                      dtype == DType::kQ8_0, layout);
            prefetch(x, m + kMicroRows, rows.end, k);
            Micro u = {};
            u.rows = layout->rows[0];
            u.wide_rows = layout->wide_rows[0];
            u.x_rows = x.rows;
            u.x_scale = x.scale + k / kGroup * x.rows + m;
            u.x_sum = x.sum + k / kGroup * x.rows + m;
            u.x_block_sum = x.block_sum + k / kBlock * x.rows + m;
            u.groups = groups;
            for (int64_t i = 0; i < panels; ++i) {
                u.codes = layout->codes[i];
                u.scale = layout->scale[i][0];
                u.offset = layout->offset[i][0];
                u.sums = layout->sums[i][m - rows.begin];
                kernels[count - 1](u);
            }
        }
    }
    finish_tile(layout->sums[0][0], p, rows, cols);
}

} // namespace

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    auto* layout = static_cast<Layout*>(scratch.get(sizeof(Layout)));
    if (layout == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; n += kTileCols)
        for (int64_t m = rows.begin; m < rows.end; m += kTileRows)
            tile(x, p, {m, m + kTileRows < rows.end ? m + kTileRows : rows.end},
                 {n, n + kTileCols < cols.end ? n + kTileCols : cols.end}, layout);
    return true;
}

} // namespace bonsai::cpu::avx2
#endif
