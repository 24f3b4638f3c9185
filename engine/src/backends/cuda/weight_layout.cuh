// SPDX-License-Identifier: Apache-2.0
// Device code that reads weights in the layout of weight_layout.h, and float weights.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/weight_layout.h"

namespace bonsai::cuda {

// Constants of a block type. kFactor: how many times the weight's code a byte of an operand word
// is.
template <DType kType> struct SlabType;
template <> struct SlabType<DType::kQ8_0> {
    static constexpr int kBlock = 32, kLaneWords = 4, kFactor = 1;
    static constexpr bool kOffset = false;
};
template <> struct SlabType<DType::kQ4_0> {
    static constexpr int kBlock = 32, kLaneWords = 2, kFactor = 16;
    static constexpr bool kOffset = false;
};
template <> struct SlabType<DType::kQ4_1> {
    static constexpr int kBlock = 32, kLaneWords = 2, kFactor = 1;
    static constexpr bool kOffset = true;
};
template <> struct SlabType<DType::kPQ2_0> {
    static constexpr int kBlock = 128, kLaneWords = 4, kFactor = 64;
    static constexpr bool kOffset = false;
};
template <> struct SlabType<DType::kQ1_0> {
    static constexpr int kBlock = 128, kLaneWords = 2, kFactor = 64;
    static constexpr bool kOffset = false;
};

template <DType kType> constexpr int kSlabCodeBytes = 32 * 4 * SlabType<kType>::kLaneWords;
// Bytes of 16 rows of one block.
template <DType kType>
constexpr int kSlabUnitBytes =
    kSlabCodeBytes<kType> + kSlabRows * 2 * (SlabType<kType>::kOffset ? 2 : 1);

// Operand word i (0..3) of K step s from a lane's words of a unit.
template <DType kType>
__device__ __forceinline__ uint32_t operand_word(const uint32_t* w, int s, int i) {
    if constexpr (kType == DType::kQ8_0) return w[i];
    if constexpr (kType == DType::kQ4_0) return (i & 1 ? w[i >> 1] << 4 : w[i >> 1]) & 0xF0F0F0F0u;
    if constexpr (kType == DType::kQ4_1) return (i & 1 ? w[i >> 1] : w[i >> 1] >> 4) & 0x0F0F0F0Fu;
    if constexpr (kType == DType::kPQ2_0) return (w[s] << 2 * i) & 0xC0C0C0C0u;
    if constexpr (kType == DType::kQ1_0)
        return ((w[s >> 1] << (4 * (s & 1) + i)) & 0x80808080u) | 0x40404040u;
    return 0;
}

// The folded layout of low-bit types. Word of the unit that holds K step s, of a lane's words.
template <DType kType> constexpr int folded_word(int s) {
    return kType == DType::kPQ2_0 ? s : s >> 1;
}
// The table of bytes of a row from the unit's word of pairs -r, r; high: of row r + 8.
template <DType kType> __device__ __forceinline__ uint32_t folded_table(uint32_t pairs, bool high) {
    if constexpr (kType == DType::kPQ2_0) return __byte_perm(pairs, 0, high ? 0x3342 : 0x1140);
    return high ? pairs >> 16 : pairs;
}
// Operand words 2 h and 2 h + 1 (rows r and r + 8) of K step s from that word.
template <DType kType>
__device__ __forceinline__ void folded_operands(uint32_t word, int s, int h, uint32_t low_table,
                                                uint32_t high_table, uint32_t* out) {
    const uint32_t select = kType == DType::kPQ2_0 ? (word >> 2 * h) & 0x33333333u
                                                   : (word >> (2 * (s & 1) + h)) & 0x11111111u;
    out[0] = __byte_perm(low_table, 0, select);
    out[1] = __byte_perm(high_table, 0, select >> 16);
}

// A lane's words of a unit: codes, then the pair of scales of its two rows (and of offsets).
template <DType kType> struct LaneUnit {
    uint32_t codes[SlabType<kType>::kLaneWords];
    uint32_t scales;
    uint32_t offsets;
};

template <DType kType>
__device__ __forceinline__ void load_unit(const uint8_t* unit, int lane, LaneUnit<kType>& out) {
    if constexpr (SlabType<kType>::kLaneWords == 4) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(unit) + lane);
        out.codes[0] = v.x, out.codes[1] = v.y, out.codes[2] = v.z, out.codes[3] = v.w;
    } else {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(unit) + lane);
        out.codes[0] = v.x, out.codes[1] = v.y;
    }
    const auto* scales = reinterpret_cast<const uint32_t*>(unit + kSlabCodeBytes<kType>);
    out.scales = __ldg(scales + (lane >> 2));
    out.offsets = SlabType<kType>::kOffset ? __ldg(scales + 8 + (lane >> 2)) : 0u;
}

// The same from shared memory.
template <DType kType>
__device__ __forceinline__ void load_shared_unit(uint32_t unit, int lane, LaneUnit<kType>& out) {
    if constexpr (SlabType<kType>::kLaneWords == 4)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out.codes[0]), "=r"(out.codes[1]), "=r"(out.codes[2]),
                       "=r"(out.codes[3])
                     : "r"(unit + 16 * lane));
    else
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(out.codes[0]), "=r"(out.codes[1])
                     : "r"(unit + 8 * lane));
    const uint32_t scales = unit + kSlabCodeBytes<kType> + (lane >> 2) * 4;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(out.scales) : "r"(scales));
    out.offsets = 0;
    if constexpr (SlabType<kType>::kOffset)
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(out.offsets) : "r"(scales + 32));
}

// Scales of rows r (x) and r + 8 (y).
__device__ __forceinline__ float2 scale_pair(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

// Four weights of one row at columns col..col + 3, col a multiple of 4.
template <DType kType>
__device__ __forceinline__ float4 slab_weights(const uint8_t* base, int64_t cols, int64_t row,
                                               int64_t col) {
    using Type = SlabType<kType>;
    const uint8_t* unit = base + (row / kSlabRows * (cols / Type::kBlock) + col / Type::kBlock) *
                                     kSlabUnitBytes<kType>;
    const int r = static_cast<int>(row) & 7, high = static_cast<int>(row) >> 3 & 1;
    const int k = static_cast<int>(col % Type::kBlock), s = k >> 5;
    const int i = high + 2 * (k >> 4 & 1), lane = 4 * r + (k >> 2 & 3);
    const auto* words = reinterpret_cast<const uint32_t*>(unit) + lane * Type::kLaneWords;
    uint32_t codes[Type::kLaneWords];
#pragma unroll
    for (int j = 0; j < Type::kLaneWords; ++j)
        codes[j] = __ldg(words + j);
    uint32_t word = 0; // indices of registers must be constants
#pragma unroll
    for (int t = 0; t < Type::kBlock / 32; ++t)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (t == s && j == i) word = operand_word<kType>(codes, t, j);
    const auto* scales = reinterpret_cast<const __half*>(unit + kSlabCodeBytes<kType>);
    const float d = __half2float(scales[2 * r + high]) * (1.0f / Type::kFactor);
    const float m = Type::kOffset ? __half2float(scales[16 + 2 * r + high]) : 0.0f;
    const auto byte = [&](int b) {
        return static_cast<float>(static_cast<int8_t>(word >> 8 * b & 0xFF));
    };
    return make_float4(fmaf(d, byte(0), m), fmaf(d, byte(1), m), fmaf(d, byte(2), m),
                       fmaf(d, byte(3), m));
}

__device__ __forceinline__ float bf16_value(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ float f16_value(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

// One element of a float matrix with contiguous rows.
__device__ __forceinline__ float float_weight(DType dtype, const uint8_t* base, int64_t index) {
    if (dtype == DType::kF32) return __ldg(reinterpret_cast<const float*>(base) + index);
    const uint16_t bits = __ldg(reinterpret_cast<const uint16_t*>(base) + index);
    return dtype == DType::kF16 ? f16_value(bits) : bf16_value(bits);
}

// Four elements of a float matrix read at once; index is a multiple of 4.
template <DType kType>
__device__ __forceinline__ float4 aligned_quad(const uint8_t* base, int64_t index) {
    if constexpr (kType == DType::kF32)
        return __ldg(reinterpret_cast<const float4*>(base) + index / 4);
    const uint2 v = __ldg(reinterpret_cast<const uint2*>(base) + index / 4);
    const auto value = [](uint32_t bits) {
        return kType == DType::kF16 ? f16_value(static_cast<uint16_t>(bits))
                                    : bf16_value(static_cast<uint16_t>(bits));
    };
    return make_float4(value(v.x & 0xFFFF), value(v.x >> 16), value(v.y & 0xFFFF),
                       value(v.y >> 16));
}

// Four weights of any type at columns col..col + 3, col a multiple of 4; columns past the end are
// 0.
__device__ inline float4 weight_values(DType dtype, const uint8_t* base, int64_t cols, int64_t row,
                                       int64_t col) {
    switch (dtype) {
    case DType::kQ8_0:
        return slab_weights<DType::kQ8_0>(base, cols, row, col);
    case DType::kQ4_0:
        return slab_weights<DType::kQ4_0>(base, cols, row, col);
    case DType::kQ4_1:
        return slab_weights<DType::kQ4_1>(base, cols, row, col);
    case DType::kPQ2_0:
        return slab_weights<DType::kPQ2_0>(base, cols, row, col);
    case DType::kQ1_0:
        return slab_weights<DType::kQ1_0>(base, cols, row, col);
    default:
        break;
    }
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
        v[j] = col + j < cols ? float_weight(dtype, base, row * cols + col + j) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}

} // namespace bonsai::cuda
