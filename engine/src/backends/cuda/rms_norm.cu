// SPDX-License-Identifier: Apache-2.0
// rms_norm: out[s, d] = x[s, d] * rsqrt(mean over d of x^2 + eps) * gain[d]
// Layout:   x, out f32 rows with a stride; gain [D].
// Maths:    f32, sums in a fixed tree.
// Work:     a block a row, held in registers up to 16384 columns.
// Roofline: 8 bytes an element, a few flop: memory-bound. 512 x 2560: 10.5 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/row_norm.cuh"

namespace bonsai::cuda {

namespace {

template <int N, bool kHeld>
__global__ void rms_norm_kernel(Rows x, const float* gain, Rows out, int cols, float eps) {
    const int64_t packs = cols / N;
    RowCache<N, kHeld> row{x.row(blockIdx.x), {}};
    row.fill(packs);
    const float squares = row.sum(packs, [](float v) { return v * v; });
    const float inverse = rsqrtf(squares / static_cast<float>(cols) + eps);
    float* to = out.row(blockIdx.x);
    each_pack<kHeld>(packs, [&](int i, int64_t pack) {
        Pack<N> v = row.get(i, pack);
        const Pack<N> g = load<N>(gain, pack);
#pragma unroll
        for (int j = 0; j < N; ++j)
            v.v[j] = v.v[j] * inverse * g.v[j];
        store<N>(to, pack, v);
    });
}

template <int N> void launch(const Context& context, const RmsNormArgs& a) {
    const auto rows = static_cast<unsigned>(a.x.rows);
    const int cols = static_cast<int>(a.x.cols), threads = row_threads(cols / N);
    if (threads > 0)
        rms_norm_kernel<N, true><<<rows, threads, 0, context.stream>>>(rows_of(a.x), a.gain.f32(),
                                                                       rows_of(a.out), cols, a.eps);
    else
        rms_norm_kernel<N, false><<<rows, 1024, 0, context.stream>>>(rows_of(a.x), a.gain.f32(),
                                                                     rows_of(a.out), cols, a.eps);
}

} // namespace

Status rms_norm(const Context& context, const RmsNormArgs& args) {
    if (vectors_of_four(args.x, args.gain, args.out))
        launch<4>(context, args);
    else
        launch<1>(context, args);
    return check_launch("rms_norm");
}

} // namespace bonsai::cuda
