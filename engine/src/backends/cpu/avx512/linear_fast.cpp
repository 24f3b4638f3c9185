// SPDX-License-Identifier: Apache-2.0
// linear_fast on 512-bit registers with vpdpbusd
// Layout:   panels of 16 columns as on the level AVX2 (avx2/linear_tile.h), taken in pairs.
// Maths:    unsigned weight codes times signed x codes, exact in 32 bits. Codes lie above the
//           weight by 1 (low-bit), 8 (Q4_0) or 128 (Q8_0, inverted sign bit): sums start at minus
//           that times the sum of x codes. The f32 steps and their order are those of AVX2, so the
//           results are equal to its results bit for bit.
// Work:     low-bit 12 x 32 blocks of y (24 sums, 2 weights, one x); with blocks of 32 along K
//           6 x 32, since each sum has an f32 one beside it for the group.
// Roofline: compute-bound: a vpdpbusd does 64 products; Zen 4 starts one a cycle, as many products
//           as vpmaddubsw makes there, but leaves the adds and the narrow sums out; Intel's server
//           cores start two.
#include "backends/cpu/table.h"

#if defined(__AVX512VNNI__) || (defined(_MSC_VER) && defined(__AVX512F__))
#include "backends/cpu/avx2/linear_tile.h"
#include "backends/cpu/avx512/linear.h"

namespace bonsai::cpu::avx512 {
namespace {

using namespace avx2;

struct Tile {
    static constexpr int kTileRows = 768, kTileCols = 64, kDepth = 256;
    static constexpr int kMicroRows = 12, kMicroPanels = 2;
    static constexpr bool kWide = false;
    static Form form(DType dtype) {
        return {dtype_info(dtype).block == kGroup ? 12 : 6, false,
                static_cast<uint8_t>(dtype == DType::kQ8_0 ? 0x80 : 0)};
    }
    static const Multiply* kernels(DType dtype);
};
constexpr int kNextCodes = Layout<Tile>::kCodeBytes;       // bytes to the pair's other panel
constexpr int kNextScale = Layout<Tile>::kScales * kPanel; // floats, likewise
constexpr int kNextSums = Tile::kTileRows * kPanel;

__m512i load_codes(const void* p) {
    return _mm512_load_si512(p);
}
__m512i broadcast32(const void* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}
// In place, like add16 of avx2/linear.h and for the same reason.
#if defined(__GNUC__)
BONSAI_ALWAYS_INLINE void add_products(__m512i& sum, __m512i codes, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
}
#else
BONSAI_ALWAYS_INLINE void add_products(__m512i& sum, __m512i codes, __m512i x) {
    sum = _mm512_dpbusd_epi32(sum, codes, x);
}
#endif
// sums += factor * value
BONSAI_ALWAYS_INLINE void add_scaled(float* sums, __m512 value, __m512 factor) {
    _mm512_store_ps(sums, _mm512_fmadd_ps(value, factor, _mm512_load_ps(sums)));
}

// acc[r][h] += dot products over Depth of K of panel h.
template <int R, int Depth>
BONSAI_ALWAYS_INLINE void dot(const int8_t* rows, const uint8_t* codes, __m512i (&acc)[R][2]) {
    BONSAI_UNROLL(4)
    for (int s = 0; s < Depth / 4; ++s) {
        const __m512i left = load_codes(codes + s * kUnit);
        const __m512i right = load_codes(codes + kNextCodes + s * kUnit);
        BONSAI_UNROLL(12)
        for (int r = 0; r < R; ++r) {
            const __m512i a = broadcast32(rows + r * Tile::kDepth + 4 * s);
            add_products(acc[r][0], left, a);
            add_products(acc[r][1], right, a);
        }
    }
}

template <int R> void multiply_low_bit(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        __m512i acc[R][2];
        BONSAI_UNROLL(12)
        for (int r = 0; r < R; ++r)
            acc[r][0] = acc[r][1] = _mm512_set1_epi32(-u.x_sum[g * u.x_rows + r]);
        dot<R, kGroup>(u.rows + g * kGroup, u.codes + g * (kGroup / 4) * kUnit, acc);
        const __m512 left = _mm512_load_ps(u.scale + g * kPanel);
        const __m512 right = _mm512_load_ps(u.scale + kNextScale + g * kPanel);
        BONSAI_UNROLL(12)
        for (int r = 0; r < R; ++r) {
            const __m512 scale = _mm512_set1_ps(u.x_scale[g * u.x_rows + r]);
            float* sums = u.sums + r * kPanel;
            add_scaled(sums, _mm512_cvtepi32_ps(acc[r][0]), _mm512_mul_ps(left, scale));
            add_scaled(sums + kNextSums, _mm512_cvtepi32_ps(acc[r][1]),
                       _mm512_mul_ps(right, scale));
        }
    }
}

template <int R, int Zero, bool Offset>
BONSAI_ALWAYS_INLINE void multiply_block(const Micro& u, int block, __m512 (&group)[R][2]) {
    __m512i acc[R][2];
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = _mm512_set1_epi32(-Zero * u.x_block_sum[block * u.x_rows + r]);
    dot<R, kBlock>(u.rows + block * kBlock, u.codes + block * (kBlock / 4) * kUnit, acc);
    const float* scale = u.scale + block * kPanel;
    const float* offset = u.offset + block * kPanel;
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r) {
        const auto x_sum = static_cast<float>(u.x_block_sum[block * u.x_rows + r]);
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            if (Offset)
                group[r][h] = _mm512_fmadd_ps(_mm512_load_ps(offset + h * kNextScale),
                                              _mm512_set1_ps(x_sum), group[r][h]);
            group[r][h] = _mm512_fmadd_ps(_mm512_load_ps(scale + h * kNextScale),
                                          _mm512_cvtepi32_ps(acc[r][h]), group[r][h]);
        }
    }
}

template <int R, int Zero, bool Offset> void multiply_blocks(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        __m512 group[R][2];
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r)
            group[r][0] = group[r][1] = _mm512_setzero_ps();
        for (int block = g * kGroupBlocks; block < (g + 1) * kGroupBlocks; ++block)
            multiply_block<R, Zero, Offset>(u, block, group);
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            const __m512 scale = _mm512_set1_ps(u.x_scale[g * u.x_rows + r]);
            add_scaled(u.sums + r * kPanel, group[r][0], scale);
            add_scaled(u.sums + kNextSums + r * kPanel, group[r][1], scale);
        }
    }
}

constexpr Multiply kLowBit[12] = {multiply_low_bit<1>,  multiply_low_bit<2>,  multiply_low_bit<3>,
                                  multiply_low_bit<4>,  multiply_low_bit<5>,  multiply_low_bit<6>,
                                  multiply_low_bit<7>,  multiply_low_bit<8>,  multiply_low_bit<9>,
                                  multiply_low_bit<10>, multiply_low_bit<11>, multiply_low_bit<12>};
template <int Zero, bool Offset>
constexpr Multiply kBlocks[6] = {
    multiply_blocks<1, Zero, Offset>, multiply_blocks<2, Zero, Offset>,
    multiply_blocks<3, Zero, Offset>, multiply_blocks<4, Zero, Offset>,
    multiply_blocks<5, Zero, Offset>, multiply_blocks<6, Zero, Offset>};

const Multiply* Tile::kernels(DType dtype) {
    if (dtype == DType::kQ8_0) return kBlocks<128, false>;
    if (dtype == DType::kQ4_0) return kBlocks<8, false>;
    if (dtype == DType::kQ4_1) return kBlocks<0, true>;
    return kLowBit;
}

} // namespace

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    return fast_piece<Tile>(x, p, rows, cols, scratch);
}

} // namespace bonsai::cpu::avx512

void bonsai::cpu::overlay_avx512_linear(KernelTable& table) {
    table.linear_fast = avx512::linear_fast;
    table.linear_piece = [](DType) -> PieceSize {
        return {avx512::Tile::kTileRows, avx512::Tile::kTileCols};
    };
}
#endif
