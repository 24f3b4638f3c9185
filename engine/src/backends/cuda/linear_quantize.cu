// SPDX-License-Identifier: Apache-2.0
// quantize_rows: x[m, k] ~ scale[k / 128, m] * q[m, k], int8 codes for linear_int8
// Layout:   x f32 rows with a stride; q row-major; scales token-innermost, as the kernels read
//           them.
// Maths:    quantize_group.cuh.
// Work:     a warp a group of 128, four columns a lane.
// Roofline: reads 4 M K bytes, writes M K; memory-bound.
#include <cmath>

#include "backends/cuda/linear.cuh"
#include "backends/cuda/quantize_group.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kWarps = 8;

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
    const GroupCodes group = quantize_group(v);
    reinterpret_cast<uint32_t*>(out.q + m * out.stride + g * kGroup)[lane] = group.codes;
    int block_sum = group.sum;
#pragma unroll
    for (int s = 4; s > 0; s >>= 1)
        block_sum += __shfl_xor_sync(~0u, block_sum, s);
    if (out.block_sum && (lane & 7) == 0)
        out.block_sum[(4 * g + (lane >> 3)) * out.scale_stride + m] = static_cast<float>(block_sum);
    if (lane == 0) out.scale[g * out.scale_stride + m] = group.scale;
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
