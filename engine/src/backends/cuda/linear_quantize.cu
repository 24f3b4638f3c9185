// SPDX-License-Identifier: Apache-2.0
// quantize_rows: x[m, k] ~ scale[k / 128, m] * q[m, k], int8 codes for linear_int8
// Layout:   x f32 rows with a stride; q row-major; scales token-innermost, as the kernels read
// them. Maths:    the bytes of cpu/generic/quantize.cpp: a = max |x| of the token's 128 columns,
//           scale = a / 127, q = x * (127 / a) to nearest even; codes 0 below 2^-100; a group that
//           is not finite gets codes 0 and scale NaN.
// Work:     a warp a group of 128, four columns a lane.
// Roofline: reads 4 M K bytes, writes M K; memory-bound.
#include <cmath>

#include "backends/cuda/linear.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kWarps = 8;
constexpr float kLeastGroupMagnitude = 0x1p-100f; // as cpu/table.h

// q is written 4 bytes a lane; x is read 16 bytes a lane where its rows allow.
template <bool kAligned> __device__ __forceinline__ float4 load4(const float* x) {
    if constexpr (kAligned) return *reinterpret_cast<const float4*>(x);
    return make_float4(x[0], x[1], x[2], x[3]);
}

template <bool kAligned>
__global__ void quantize_kernel(const float* x, int64_t x_stride, QuantizedRows out) {
    const int lane = threadIdx.x & 31;
    const int64_t groups = out.cols / kGroup;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5);
    const int64_t m = index / groups, g = index % groups;
    if (m >= out.rows) return;
    const float4 v = load4<kAligned>(x + m * x_stride + g * kGroup + 4 * lane);
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
    const uint32_t codes = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (d & 255) << 24;
    reinterpret_cast<uint32_t*>(out.q + m * out.stride + g * kGroup)[lane] = codes;
    int block_sum = a + b + c + d;
#pragma unroll
    for (int s = 4; s > 0; s >>= 1)
        block_sum += __shfl_xor_sync(~0u, block_sum, s);
    if (out.block_sum && (lane & 7) == 0)
        out.block_sum[(4 * g + (lane >> 3)) * out.scale_stride + m] = static_cast<float>(block_sum);
    if (lane == 0)
        out.scale[g * out.scale_stride + m] = !finite  ? __int_as_float(0x7FC00000)
                                              : usable ? __fdiv_rn(largest, 127.0f)
                                                       : 0.0f;
}

} // namespace

Status allocate_quantized(const Context& context, int64_t rows, int64_t cols, QuantizedRows* out) {
    out->rows = rows;
    out->cols = cols;
    out->stride = cols;
    out->scale_stride = quantized_scale_stride(rows);
    const auto scales = static_cast<size_t>(cols / kGroup * out->scale_stride);
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(rows * cols), &out->q));
    BONSAI_TRY(context.scratch->get(scales, &out->scale));
    return context.scratch->get(kGroup / 32 * scales, &out->block_sum);
}

Status quantize_rows(const Context& context, const Tensor& x, const QuantizedRows& out) {
    const int64_t warps = x.rows * (x.cols / kGroup);
    const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
    if (blocks == 0) return {};
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0;
    if (aligned)
        quantize_kernel<true><<<blocks, 32 * kWarps, 0, context.stream>>>(x.f32(), x.stride, out);
    else
        quantize_kernel<false><<<blocks, 32 * kWarps, 0, context.stream>>>(x.f32(), x.stride, out);
    return check_launch("linear: quantize_rows");
}

} // namespace bonsai::cuda
