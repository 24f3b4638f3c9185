// SPDX-License-Identifier: Apache-2.0
// head_norm_rope: each head of a row divided by its root mean square, times gain[head_dim]; then
// pair i, (a, b), becomes (a cos - b sin, b cos + a sin) with the row's cos[i], sin[i]. In place.
// Layout:   x f32 or f16 rows with a stride, head h at column h * head_dim; cos, sin [S, head_dim /
// 2]. Maths:    f32, sums in a fixed tree. Work:     a warp a head; a lane holds pairs lane, lane +
// 32, ..., up to 4 of them (head_dim 256),
//           and reads longer heads twice.
// Roofline: 8 bytes an element, 4 of f16, a few flop: memory-bound. 1536 x 3072: 38 or 19 MB.
#include <cuda_fp16.h>

#include "backends/cuda/kernels.h"
#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {

namespace {

constexpr int kWarps = 8; // of a block
constexpr int kHeld = 4;  // pairs of a lane

template <typename T> struct Heads {
    T* x;
    int64_t stride;
    Rows cos, sin;
    const float* gain;
    int64_t rows;
    int heads, head_dim;
    float eps;
};

__device__ float to_float(float v) {
    return v;
}
__device__ float to_float(__half v) {
    return __half2float(v);
}
__device__ void put(float* to, float v) {
    *to = v;
}
__device__ void put(__half* to, float v) {
    *to = __float2half_rn(v);
}

template <typename T, bool kHalves> struct Pairs {
    T* head;
    int half;
    __device__ int first(int i) const { return kHalves ? i : 2 * i; }
    __device__ int second(int i) const { return kHalves ? i + half : 2 * i + 1; }
};

template <typename T, bool kHalves>
__device__ void rotate(const Heads<T>& p, const Pairs<T, kHalves>& at, int64_t s, int i, float a,
                       float b, float inverse) {
    const int first = at.first(i), second = at.second(i);
    const float c = p.cos.row(s)[i], n = p.sin.row(s)[i];
    a = a * inverse * p.gain[first];
    b = b * inverse * p.gain[second];
    put(at.head + first, a * c - b * n);
    put(at.head + second, b * c + a * n);
}

template <typename T, bool kHalves> __global__ void head_norm_rope_kernel(Heads<T> p) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (unit >= p.rows * p.heads) return;
    const int64_t s = unit / p.heads;
    const Pairs<T, kHalves> at{p.x + s * p.stride + unit % p.heads * p.head_dim, p.head_dim / 2};
    float a[kHeld], b[kHeld], squares = 0;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarp;
        a[j] = i < at.half ? to_float(at.head[at.first(i)]) : 0.0f;
        b[j] = i < at.half ? to_float(at.head[at.second(i)]) : 0.0f;
        squares += a[j] * a[j] + b[j] * b[j];
    }
    for (int i = lane + kHeld * kWarp; i < at.half; i += kWarp) {
        const float x = to_float(at.head[at.first(i)]), y = to_float(at.head[at.second(i)]);
        squares += x * x + y * y;
    }
    const float inverse = rsqrtf(warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarp;
        if (i < at.half) rotate(p, at, s, i, a[j], b[j], inverse);
    }
    for (int i = lane + kHeld * kWarp; i < at.half; i += kWarp)
        rotate(p, at, s, i, to_float(at.head[at.first(i)]), to_float(at.head[at.second(i)]),
               inverse);
}

template <typename T> void launch(const Context& context, const HeadNormRopeArgs& args) {
    const int heads = static_cast<int>(args.x.cols / args.head_dim);
    const Heads<T> p{static_cast<T*>(args.x.data),
                     args.x.stride,
                     rows_of(args.cos),
                     rows_of(args.sin),
                     args.gain.f32(),
                     args.x.rows,
                     heads,
                     args.head_dim,
                     args.eps};
    const auto blocks = static_cast<unsigned>((args.x.rows * heads + kWarps - 1) / kWarps);
    if (args.pairs == RopePairs::kHalves)
        head_norm_rope_kernel<T, true><<<blocks, kWarps * kWarp, 0, context.stream>>>(p);
    else
        head_norm_rope_kernel<T, false><<<blocks, kWarps * kWarp, 0, context.stream>>>(p);
}

} // namespace

Status head_norm_rope(const Context& context, const HeadNormRopeArgs& args) {
    if (args.x.dtype == DType::kF16)
        launch<__half>(context, args);
    else
        launch<float>(context, args);
    return check_launch("head_norm_rope");
}

} // namespace bonsai::cuda
