// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d]
// Layout:   x, out f32 rows with a stride; scale, shift [D].
// Maths:    f32, sums in a fixed tree; the variance from differences to the mean.
// Work:     a block a row, held in registers up to 16384 columns.
// Roofline: 8 bytes an element, a few flop: memory-bound. 1536 x 3072: 38 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/row_norm.cuh"

namespace bonsai::cuda {

namespace {

template <int N, bool kHeld>
__global__ void layer_norm_kernel(Rows x, const float* scale, const float* shift, Rows out,
                                  int cols, float eps) {
    const int64_t packs = cols / N;
    const auto count = static_cast<float>(cols);
    RowCache<N, kHeld> row{x.row(blockIdx.x), {}};
    row.fill(packs);
    const float mean = row.sum(packs, [](float v) { return v; }) / count;
    const float squares = row.sum(packs, [=](float v) { return (v - mean) * (v - mean); });
    const float inverse = rsqrtf(squares / count + eps);
    float* to = out.row(blockIdx.x);
    each_pack<kHeld>(packs, [&](int i, int64_t pack) {
        Pack<N> v = row.get(i, pack);
        const Pack<N> a = load<N>(scale, pack), b = load<N>(shift, pack);
#pragma unroll
        for (int j = 0; j < N; ++j)
            v.v[j] = (1.0f + a.v[j]) * ((v.v[j] - mean) * inverse) + b.v[j];
        store<N>(to, pack, v);
    });
}

template <int N> void launch(const Context& context, const LayerNormArgs& a) {
    const auto rows = static_cast<unsigned>(a.x.rows);
    const int cols = static_cast<int>(a.x.cols), threads = row_threads(cols / N);
    if (threads > 0)
        layer_norm_kernel<N, true><<<rows, threads, 0, context.stream>>>(
            rows_of(a.x), a.scale.f32(), a.shift.f32(), rows_of(a.out), cols, a.eps);
    else
        layer_norm_kernel<N, false><<<rows, 1024, 0, context.stream>>>(
            rows_of(a.x), a.scale.f32(), a.shift.f32(), rows_of(a.out), cols, a.eps);
}

} // namespace

Status layer_norm(const Context& context, const LayerNormArgs& args) {
    if (vectors_of_four(args.x, args.scale, args.shift, args.out))
        launch<4>(context, args);
    else
        launch<1>(context, args);
    return check_launch("layer_norm");
}

} // namespace bonsai::cuda
