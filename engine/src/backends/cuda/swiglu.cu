// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up
// Layout:   gate, up f32 or f16; out f32 or I8; rows with strides; out may be gate.
// Work:     a thread four columns; to I8 a warp a group of 128.
// Roofline: 12 bytes an element in f32, 5 from f16 to I8: memory-bound. 1536 x 9216: 170 or 71 MB.
#include <cuda_fp16.h>

#include "backends/cuda/kernels.h"
#include "backends/cuda/pointwise.cuh"
#include "backends/cuda/quantize_group.cuh"

namespace bonsai::cuda {

namespace {

constexpr int kWarps = 8; // of a block

struct Swiglu {
    __device__ float operator()(int64_t, float gate, float up) const { return silu_of(gate) * up; }
};

__device__ float4 four(const float* at, bool aligned) {
    if (aligned) return *reinterpret_cast<const float4*>(at);
    return make_float4(at[0], at[1], at[2], at[3]);
}
__device__ float4 four(const __half* at, bool aligned) {
    if (!aligned)
        return make_float4(__half2float(at[0]), __half2float(at[1]), __half2float(at[2]),
                           __half2float(at[3]));
    const uint2 bits = *reinterpret_cast<const uint2*>(at);
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&bits.x)),
                 high = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    return make_float4(low.x, low.y, high.x, high.y);
}

template <typename T> struct Halves {
    const T *gate, *up;
    int64_t gate_stride, up_stride;
    int64_t rows, groups;
    bool aligned;
    __device__ float4 at(int64_t row, int64_t column) const {
        const float4 g = four(gate + row * gate_stride + column, aligned),
                     u = four(up + row * up_stride + column, aligned);
        return make_float4(silu_of(g.x) * u.x, silu_of(g.y) * u.y, silu_of(g.z) * u.z,
                           silu_of(g.w) * u.w);
    }
};

template <typename T> __global__ void swiglu_codes_kernel(Halves<T> in, CodeRows out) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (unit >= in.rows * in.groups) return;
    const int64_t row = unit / in.groups, group = unit % in.groups;
    out.store(row, group, lane, quantize_group(in.at(row, group * kGroup + 4 * lane)));
}

__global__ void swiglu_half_kernel(Halves<__half> in, Rows out, int64_t cols) {
    const int64_t row = blockIdx.y,
                  column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= cols) return;
    const float g = __half2float(in.gate[row * in.gate_stride + column]),
                u = __half2float(in.up[row * in.up_stride + column]);
    out.row(row)[column] = silu_of(g) * u;
}

template <typename T> Halves<T> halves(const SwigluArgs& a) {
    const auto step = [](const Tensor& t) {
        return t.stride % 4 == 0 && reinterpret_cast<uintptr_t>(t.data) % (4 * sizeof(T)) == 0;
    };
    return {static_cast<const T*>(a.gate.data),
            static_cast<const T*>(a.up.data),
            a.gate.stride,
            a.up.stride,
            a.gate.rows,
            a.gate.cols / kGroup,
            step(a.gate) && step(a.up)};
}

template <typename T> void to_codes(const Context& context, const SwigluArgs& args) {
    const Halves<T> in = halves<T>(args);
    const auto blocks = static_cast<unsigned>((in.rows * in.groups + kWarps - 1) / kWarps);
    swiglu_codes_kernel<<<blocks, kWarps * kWarp, 0, context.stream>>>(in, code_rows(args.out));
}

} // namespace

Status swiglu(const Context& context, const SwigluArgs& args) {
    const bool half = args.gate.dtype == DType::kF16;
    if (args.out.dtype == DType::kI8) {
        half ? to_codes<__half>(context, args) : to_codes<float>(context, args);
    } else if (half) {
        const dim3 grid(static_cast<unsigned>((args.gate.cols + 255) / 256),
                        static_cast<unsigned>(args.gate.rows));
        swiglu_half_kernel<<<grid, 256, 0, context.stream>>>(halves<__half>(args),
                                                             rows_of(args.out), args.gate.cols);
    } else {
        pointwise<true>(context, args.gate, args.up, args.out, Swiglu());
    }
    return check_launch("swiglu");
}

} // namespace bonsai::cuda
