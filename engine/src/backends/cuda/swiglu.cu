// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up
// Layout:   gate, up f32 or f16; out f32 or I8; rows with strides; out may be gate.
// Work:     a thread four columns; to I8 a warp 512 columns, all loads under way at once.
// Roofline: 12 bytes an element in f32, 5 from f16 to I8: memory-bound. 1536 x 9216: 170 or 71 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/pointwise.cuh"
#include "backends/cuda/quantize_group.cuh"

namespace bonsai::cuda {

namespace {

constexpr int kWarps = 8; // of a block

struct Swiglu {
    __device__ float operator()(int64_t, float gate, float up) const { return silu_of(gate) * up; }
};

template <typename T> struct Halves {
    const T *gate, *up;
    int64_t gate_stride, up_stride;
    int rows, cols;
};

// kAligned: rows allow four elements at a time.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kWarps* kWarp) swiglu_codes_kernel(Halves<T> in, CodeRows out) {
    const int spans = (in.cols + kSpan - 1) / kSpan;
    const int unit = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int row = unit / spans, span = unit - row * spans;
    if (row >= in.rows) return;
    const int pieces = min(kPieces, in.cols / kGroup - span * kPieces);
    const int64_t column = int64_t{span} * kSpan + 4 * lane;
    const T* gate = in.gate + row * in.gate_stride + column;
    const T* up = in.up + row * in.up_stride + column;
    float4 g[kPieces], u[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        g[i] = i < pieces ? four(gate + i * kGroup, kAligned) : float4();
        u[i] = i < pieces ? four(up + i * kGroup, kAligned) : float4();
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        g[i] = make_float4(silu_of(g[i].x) * u[i].x, silu_of(g[i].y) * u[i].y,
                           silu_of(g[i].z) * u[i].z, silu_of(g[i].w) * u[i].w);
    out.store(row, span, pieces, lane, g);
}

__global__ void swiglu_half_kernel(Halves<__half> in, Rows out) {
    const int64_t row = blockIdx.x, // of which there may be more than blockIdx.y counts
        column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
    if (column >= in.cols) return;
    const float g = __half2float(in.gate[row * in.gate_stride + column]),
                u = __half2float(in.up[row * in.up_stride + column]);
    out.row(row)[column] = silu_of(g) * u;
}

template <typename T> Halves<T> halves(const SwigluArgs& a) {
    return {static_cast<const T*>(a.gate.data),
            static_cast<const T*>(a.up.data),
            a.gate.stride,
            a.up.stride,
            static_cast<int>(a.gate.rows),
            static_cast<int>(a.gate.cols)};
}

template <typename T> void to_codes(const Context& context, const SwigluArgs& args) {
    const auto aligned = [](const Tensor& t) {
        return t.stride % 4 == 0 && reinterpret_cast<uintptr_t>(t.data) % (4 * sizeof(T)) == 0;
    };
    const int64_t spans = args.gate.rows * ((args.gate.cols + kSpan - 1) / kSpan);
    const auto blocks = static_cast<unsigned>((spans + kWarps - 1) / kWarps);
    if (aligned(args.gate) && aligned(args.up))
        swiglu_codes_kernel<true>
            <<<blocks, kWarps * kWarp, 0, context.stream>>>(halves<T>(args), code_rows(args.out));
    else
        swiglu_codes_kernel<false>
            <<<blocks, kWarps * kWarp, 0, context.stream>>>(halves<T>(args), code_rows(args.out));
}

} // namespace

Status swiglu(const Context& context, const SwigluArgs& args) {
    const bool half = args.gate.dtype == DType::kF16;
    if (args.out.dtype == DType::kI8) {
        half ? to_codes<__half>(context, args) : to_codes<float>(context, args);
    } else if (half) {
        const dim3 grid(static_cast<unsigned>(args.gate.rows),
                        static_cast<unsigned>((args.gate.cols + 255) / 256));
        swiglu_half_kernel<<<grid, 256, 0, context.stream>>>(halves<__half>(args),
                                                             rows_of(args.out));
    } else {
        pointwise<true>(context, args.gate, args.up, args.out, Swiglu());
    }
    return check_launch("swiglu");
}

} // namespace bonsai::cuda
