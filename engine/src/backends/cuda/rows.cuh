// SPDX-License-Identifier: Apache-2.0
// What kernels that walk over rows share: access to four floats at a time where addresses allow,
// and sums over a block whose order depends on nothing but its size.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "core/tensor.h"

namespace bonsai::cuda {

constexpr int kWarp = 32;

// Rows of f32 as a kernel takes them; the stride in floats.
struct Rows {
    float* data;
    int64_t stride;
    __device__ float* row(int64_t r) const { return data + r * stride; }
};

inline Rows rows_of(const Tensor& t) {
    return {t.f32(), t.stride};
}

// Whether all rows can be read as float4.
inline bool vectors_of_four(const Tensor& t) {
    return t.cols % 4 == 0 && t.stride % 4 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}
template <typename... Tensors> bool vectors_of_four(const Tensor& t, const Tensors&... others) {
    return vectors_of_four(t) && vectors_of_four(others...);
}

// One or four floats, moved at once.
template <int N> struct Pack;
template <> struct Pack<1> {
    float v[1];
};
template <> struct alignas(16) Pack<4> {
    float v[4];
};

template <int N> __device__ Pack<N> load(const float* row, int64_t pack) {
    return reinterpret_cast<const Pack<N>*>(row)[pack];
}
template <int N> __device__ void store(float* row, int64_t pack, const Pack<N>& value) {
    reinterpret_cast<Pack<N>*>(row)[pack] = value;
}

// Four elements of a row, at once where its address allows.
__device__ __forceinline__ float4 four(const float* at, bool aligned) {
    if (aligned) return *reinterpret_cast<const float4*>(at);
    return make_float4(at[0], at[1], at[2], at[3]);
}
__device__ __forceinline__ float4 four(const __half* at, bool aligned) {
    if (!aligned)
        return make_float4(__half2float(at[0]), __half2float(at[1]), __half2float(at[2]),
                           __half2float(at[3]));
    const uint2 bits = *reinterpret_cast<const uint2*>(at);
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&bits.x)),
                 high = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    return make_float4(low.x, low.y, high.x, high.y);
}

__device__ inline float warp_sum(float value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Of all threads, given to all. May be called again at once.
__device__ inline float block_sum(float value) {
    __shared__ float of_warps[kWarp];
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    value = warp_sum(value);
    if (lane == 0) of_warps[warp] = value;
    __syncthreads();
    value = warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? of_warps[lane] : 0.0f);
    __syncthreads();
    return value;
}

// Within 2^-21: the division is by an approximate reciprocal, which is 0 from 2^126 on.
__device__ inline float silu_of(float x) {
    return __fdividef(x, 1.0f + __expf(-x));
}

} // namespace bonsai::cuda
