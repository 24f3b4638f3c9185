// SPDX-License-Identifier: Apache-2.0
// A group of 128 activations to int8, by a warp: the bytes of cpu/generic/quantize.cpp.
// Maths: a = max |x|; scale = a / 127; q = x * (127 / a) to nearest even; codes 0 below 2^-100; a
//        group that is not finite gets codes 0 and scale NaN.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace bonsai::cuda {

struct GroupCodes {
    uint32_t codes; // of this lane's four columns, the first in the low byte
    int sum;        // of this lane's codes
    float scale;    // of the group
};

// Lane l holds columns 4 l .. 4 l + 3.
__device__ __forceinline__ GroupCodes quantize_group(float4 v) {
    constexpr float kLeastGroupMagnitude = 0x1p-100f; // as cpu/table.h
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    // fmaxf drops a NaN, and a sum keeps it.
    const float sum = (fabsf(v.x) + fabsf(v.y)) + (fabsf(v.z) + fabsf(v.w));
    const bool nan = __any_sync(~0u, sum != sum);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    const bool finite = !nan && largest <= 3.402823466e38f;
    const bool usable = finite && largest >= kLeastGroupMagnitude;
    const float inverse = usable ? __fdiv_rn(127.0f, largest) : 0.0f;
    const int a = usable ? __float2int_rn(__fmul_rn(v.x, inverse)) : 0;
    const int b = usable ? __float2int_rn(__fmul_rn(v.y, inverse)) : 0;
    const int c = usable ? __float2int_rn(__fmul_rn(v.z, inverse)) : 0;
    const int d = usable ? __float2int_rn(__fmul_rn(v.w, inverse)) : 0;
    GroupCodes out;
    out.codes = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (d & 255) << 24;
    out.sum = a + b + c + d;
    out.scale = !finite ? __int_as_float(0x7FC00000) : usable ? __fdiv_rn(largest, 127.0f) : 0.0f;
    return out;
}

// An I8 matrix as kernels write it.
struct CodeRows {
    int8_t* codes;
    int64_t stride; // bytes
    float* scales;
    int64_t scale_stride;
    // By all lanes of the warp that holds the group.
    __device__ __forceinline__ void store(int64_t row, int64_t group, int lane,
                                          const GroupCodes& value) const {
        reinterpret_cast<uint32_t*>(codes + row * stride + group * 128)[lane] = value.codes;
        if (lane == 0) scales[group * scale_stride + row] = value.scale;
    }
};

inline CodeRows code_rows(const Tensor& t) {
    return {static_cast<int8_t*>(t.data), t.stride, t.scales, t.scale_stride};
}

} // namespace bonsai::cuda
