// SPDX-License-Identifier: Apache-2.0
// Weights as the A operand of wgmma with 16-bit floats: lane 4 r + q of a warp holds rows r and
// r + 8 of a slab of 16, of each 16 columns of K the four from 4 q. Word i of four: row r + 8
// (i & 1), columns 4 q + 2 (i >> 1) and the next; the activations stand in the order that goes with
// it (half_position).
// Maths: codes become f16 by bits put behind those of 1024, exactly; times the block's scale (plus
//        offset) with one rounding, to 2^-11; what the rounding took is the second term, so that
//        two terms hold a weight to 2^-22. Scales of f16 below 2^-14 cost nothing, as products of
//        them are multiples of 2^-24; |weights| beyond 65504 become infinite.
#pragma once

#include "backends/cuda/mma.cuh"
#include "backends/cuda/weight_layout.cuh"

namespace bonsai::cuda {

constexpr bool is_float_type(DType type) {
    return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

__device__ __forceinline__ __half2 pair_of(uint32_t bits) {
    return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ uint32_t bits_of(__half2 pair) {
    return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ __half2 both(float value) {
    return __float2half2_rn(value);
}

// Bytes 2 p and 2 p + 1 of a word behind the bits of 1024 each.
template <int p> __device__ __forceinline__ uint32_t behind_1024(uint32_t word) {
    return __byte_perm(word, 0x64646464u, p == 0 ? 0x4140 : 0x4342);
}

// The codes of word `i` (see above) of 16 columns, half `h` of step `s` of 32, in f16.
template <DType kType, int i>
__device__ __forceinline__ __half2 code_pair(const uint32_t* codes, int s, int h) {
    constexpr int p = i >> 1, low = i & 1;
    if constexpr (kType == DType::kQ8_0)
        return __hsub2(pair_of(behind_1024<p>(codes[2 * h + low] ^ 0x80808080u)), both(1152));
    if constexpr (kType == DType::kQ4_0 || kType == DType::kQ4_1) {
        constexpr bool kSigned = kType == DType::kQ4_0;
        const uint32_t pair = behind_1024<p>(kSigned ? codes[h] ^ 0x88888888u : codes[h]);
        if constexpr (low != 0)
            return __hsub2(pair_of(pair & 0xFF0FFF0Fu), both(kSigned ? 1032 : 1024));
        else
            return __hfma2(pair_of(pair & 0xFFF0FFF0u), both(0.0625f), both(kSigned ? -72 : -64));
    }
    if constexpr (kType == DType::kPQ2_0) { // field f of a byte, from the top
        const int f = 2 * h + low, up = 6 - 2 * f;
        const uint32_t mask = 0xFF00FF00u | 0x00030003u << up, flip = 0x00020002u << up;
        const uint32_t pair = (behind_1024<p>(codes[s]) & mask) ^ flip;
        const float unit = static_cast<float>(1 << up);
        return __hfma2(pair_of(pair), both(1 / unit), both(-1024 / unit - 2));
    }
    return both(0);
}

// The same times scale, for Q1_0, whose codes are signs.
template <int i>
__device__ __forceinline__ uint32_t signed_pair(const uint32_t* codes, int s, int h,
                                                uint32_t scale) {
    const int bit = 4 * (s & 1) + 2 * h + (i & 1); // from the top
    const uint32_t pair = __byte_perm(codes[s >> 1], 0, (i >> 1) == 0 ? 0x1404 : 0x3424);
    return (pair << bit & 0x80008000u) ^ scale;
}

// a + b and what rounding took of it (Knuth's two-sum).
__device__ __forceinline__ __half2 two_sum(__half2 a, __half2 b, __half2* error) {
    const __half2 sum = __hadd2_rn(a, b), part = __hsub2_rn(sum, a);
    *error = __hadd2_rn(__hsub2_rn(a, __hsub2_rn(sum, part)), __hsub2_rn(b, part));
    return sum;
}

template <DType kType, int kTerms, int i>
__device__ __forceinline__ void weight_pair(const LaneUnit<kType>& unit, int s, int h,
                                            uint32_t (&high)[4], uint32_t (&low)[4]) {
    const uint32_t rows = (i & 1) != 0 ? 0x3232 : 0x1010; // of the scales' pairs
    const uint32_t scale = __byte_perm(unit.scales, 0, rows);
    if constexpr (kType == DType::kQ1_0) {
        high[i] = signed_pair<i>(unit.codes, s, h, scale);
    } else {
        const __half2 code = code_pair<kType, i>(unit.codes, s, h), d = pair_of(scale);
        if constexpr (kType == DType::kQ4_1) {
            const __half2 m = pair_of(__byte_perm(unit.offsets, 0, rows));
            if constexpr (kTerms == 1) {
                high[i] = bits_of(__hfma2(code, d, m));
            } else {
                __half2 error;
                const __half2 product = __hmul2_rn(code, d);
                high[i] = bits_of(two_sum(product, m, &error));
                low[i] = bits_of(__hadd2_rn(error, __hfma2(code, d, __hneg2(product))));
            }
        } else {
            const __half2 product = __hmul2_rn(code, d);
            high[i] = bits_of(product);
            if constexpr (kTerms == 2) low[i] = bits_of(__hfma2(code, d, __hneg2(product)));
        }
    }
}

// Block-quantised weights of a stage of 128 columns: a lane's units of one slab, one after another.
template <DType kType, int kTerms> struct SlabSource {
    LaneUnit<kType> unit = {};
    // Operands of columns 16 step .. 16 step + 15; steps ascend. `slab`: of the stage.
    __device__ __forceinline__ void operands(uint32_t slab, int lane, int step, uint32_t (&high)[4],
                                             uint32_t (&low)[4]) {
        constexpr int kSteps = SlabType<kType>::kBlock / 16;
        if (step % kSteps == 0)
            load_shared_unit<kType>(slab + step / kSteps * kSlabUnitBytes<kType>, lane, unit);
        const int s = step % kSteps / 2, h = step % 2;
        weight_pair<kType, kTerms, 0>(unit, s, h, high, low);
        weight_pair<kType, kTerms, 1>(unit, s, h, high, low);
        weight_pair<kType, kTerms, 2>(unit, s, h, high, low);
        weight_pair<kType, kTerms, 3>(unit, s, h, high, low);
    }
};

// Float weights of a stage of 64 columns: rows of 128 bytes, swizzled; F32 in two boxes. kRows: of
// a box. F16 and BF16 are the operand; F32 becomes two terms of bf16.
template <DType kType, int kRows> struct RowSource {
    // `slab`: where row 0 of the slab begins in the first box.
    __device__ __forceinline__ void operands(uint32_t slab, int lane, int step, uint32_t (&high)[4],
                                             uint32_t (&low)[4]) const {
        const int r = lane >> 2, q = lane & 3; // row % 8 is r in both rows
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t row = slab + (r + 8 * i) * 128;
            if constexpr (kType == DType::kF32) {
                const uint32_t box = row + step / 2 * (kRows * 128);
                float v[4];
                asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                             : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                             : "r"(box + (((4 * (step & 1) + q) ^ r) << 4)));
#pragma unroll
                for (int p = 0; p < 2; ++p)
                    split(v[2 * p], v[2 * p + 1], high[2 * p + i], low[2 * p + i]);
            } else {
                asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                             : "=r"(high[i]), "=r"(high[2 + i])
                             : "r"(row + (((2 * step + (q >> 1)) ^ r) << 4) + 8 * (q & 1)));
            }
        }
    }

  private:
    __device__ __forceinline__ static void split(float a, float b, uint32_t& high, uint32_t& low) {
        const __nv_bfloat162 near = __floats2bfloat162_rn(a, b);
        high = reinterpret_cast<const uint32_t&>(near);
        const float x = a - __uint_as_float(high << 16),
                    y = b - __uint_as_float(high & 0xFFFF0000u);
        const __nv_bfloat162 left = __floats2bfloat162_rn(x, y);
        low = reinterpret_cast<const uint32_t&>(left);
    }
};

} // namespace bonsai::cuda
