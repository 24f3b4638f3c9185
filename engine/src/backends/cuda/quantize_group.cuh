// SPDX-License-Identifier: Apache-2.0
// Activations to int8, a warp 512 columns of a row: the bytes of cpu/generic/quantize.cpp where a
// group has 128, and the same rule for groups of 256 and 512.
// Maths:    a = max |x|; scale = a / 127; q = x * (127 / a) to nearest even; codes 0 below 2^-100;
//           a group that is not finite gets codes 0 and scale NaN.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace bonsai::cuda {

constexpr int kSpan = 512;           // columns that a warp holds
constexpr int kPieces = kSpan / 128; // of them, four columns a lane each

struct GroupScale {
    float scale, inverse; // inverse 0: all codes are 0

    // In the low byte. Adding 1.5 * 2^23 rounds to nearest even.
    __device__ __forceinline__ uint32_t code(float x) const {
        return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0f));
    }
    // Four codes, the first in the low byte.
    __device__ __forceinline__ uint32_t codes(float a, float b, float c, float d) const {
        const uint32_t low = __byte_perm(code(a), code(b), 0x0040),
                       high = __byte_perm(code(c), code(d), 0x0040);
        return inverse > 0 ? __byte_perm(low, high, 0x5410) : 0;
    }
    __device__ __forceinline__ uint32_t codes(float4 v) const { return codes(v.x, v.y, v.z, v.w); }
};

// From the largest magnitude and the sum of magnitudes (which keeps a NaN, as fmaxf does not) of
// what each of `lanes` neighbouring lanes holds.
__device__ __forceinline__ GroupScale group_scale(float largest, float sum, int lanes) {
#pragma unroll
    for (int d = 1; d < lanes; d *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        sum += __shfl_xor_sync(~0u, sum, d);
    }
    const bool finite = sum == sum && largest <= 3.402823466e38f;
    if (!finite) return {__int_as_float(0x7FC00000), 0.0f};
    if (largest < 0x1p-100f) return {0.0f, 0.0f}; // kLeastGroupMagnitude of cpu/table.h
    return {__fdiv_rn(largest, 127.0f), __fdiv_rn(127.0f, largest)};
}

__device__ __forceinline__ float largest_of(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}
__device__ __forceinline__ float magnitudes_of(float4 v) {
    return (fabsf(v.x) + fabsf(v.y)) + (fabsf(v.z) + fabsf(v.w));
}

// The scales of a span's pieces, of which `share` neighbours have one: 1, 2 or all four.
__device__ __forceinline__ void span_scales(const float4 (&v)[kPieces], int share,
                                            GroupScale (&scales)[kPieces]) {
    float largest[kPieces], sum[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        largest[i] = largest_of(v[i]), sum[i] = magnitudes_of(v[i]);
    if (share == 1) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            scales[i] = group_scale(largest[i], sum[i], 32);
        return;
    }
    const float low = fmaxf(largest[0], largest[1]), high = fmaxf(largest[2], largest[3]),
                low_sum = sum[0] + sum[1], high_sum = sum[2] + sum[3];
    if (share == kPieces) {
        scales[0] = group_scale(fmaxf(low, high), low_sum + high_sum, 32);
        scales[2] = scales[0];
    } else {
        scales[0] = group_scale(low, low_sum, 32);
        scales[2] = group_scale(high, high_sum, 32);
    }
    scales[1] = scales[0], scales[3] = scales[2];
}

// An I8 matrix as kernels write it.
struct CodeRows {
    int8_t* codes;
    int64_t stride; // bytes
    float* scales;
    int64_t scale_stride;
    int share; // pieces of 128 columns a scale: 1, 2 or 4

    // By a whole warp: lane l has columns 512 span + 128 i + 4 l and the three behind it in v[i],
    // i < pieces, and zeros in the others.
    __device__ __forceinline__ void store(int64_t row, int64_t span, int pieces, int lane,
                                          const float4 (&v)[kPieces]) const {
        GroupScale scale[kPieces];
        span_scales(v, share, scale);
        auto* words = reinterpret_cast<uint32_t*>(codes + row * stride + span * kSpan) + lane;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            if (i < pieces) words[32 * i] = scale[i].codes(v[i]);
        if (lane != 0) return;
        float* to = scales + span * (kPieces / share) * scale_stride + row;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            if (i < pieces && i % share == 0) to[i / share * scale_stride] = scale[i].scale;
    }
    // The same for one group of 128 columns.
    __device__ __forceinline__ void store_group(int64_t row, int64_t group, int lane,
                                                float4 v) const {
        const GroupScale scale = group_scale(largest_of(v), magnitudes_of(v), 32);
        reinterpret_cast<uint32_t*>(codes + row * stride + group * 128)[lane] = scale.codes(v);
        if (lane == 0) scales[group * scale_stride + row] = scale.scale;
    }
};

inline CodeRows code_rows(const Tensor& t) {
    return {static_cast<int8_t*>(t.data), t.stride, t.scales, t.scale_stride,
            t.scale_group / kGroup};
}

} // namespace bonsai::cuda
