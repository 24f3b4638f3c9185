// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d]
// Layout:   x f32, out f32 or I8, rows with a stride; scale, shift [D].
// Maths:    f32, sums in a fixed tree; the variance from differences to the mean.
// Work:     a block a row, held in registers up to 16384 columns.
// Roofline: 8 bytes an element, 5 to I8, a few flop: memory-bound. 1536 x 3072: 38 or 24 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/quantize_group.cuh"
#include "backends/cuda/row_norm.cuh"

namespace bonsai::cuda {

namespace {

struct Norm {
    Rows x;
    const float *scale, *shift;
    int cols;
    float eps;
};

// To: Rows, or CodeRows, whose groups of 128 are then each in the hands of one warp.
template <int N, bool kHeld, typename To> __global__ void layer_norm_kernel(Norm p, To out) {
    const int64_t packs = p.cols / N;
    const auto count = static_cast<float>(p.cols);
    RowCache<N, kHeld> row{p.x.row(blockIdx.x), {}};
    row.fill(packs);
    const float mean = row.sum(packs, [](float v) { return v; }) / count;
    const float squares = row.sum(packs, [=](float v) { return (v - mean) * (v - mean); });
    const float inverse = rsqrtf(squares / count + p.eps);
    each_pack<kHeld>(packs, [&](int i, int64_t pack) {
        Pack<N> v = row.get(i, pack);
        const Pack<N> a = load<N>(p.scale, pack), b = load<N>(p.shift, pack);
#pragma unroll
        for (int j = 0; j < N; ++j)
            v.v[j] = (1.0f + a.v[j]) * ((v.v[j] - mean) * inverse) + b.v[j];
        if constexpr (std::is_same_v<To, CodeRows>)
            out.store(blockIdx.x, pack / kWarp, static_cast<int>(pack % kWarp),
                      quantize_group(make_float4(v.v[0], v.v[1], v.v[2], v.v[3])));
        else
            store<N>(out.row(blockIdx.x), pack, v);
    });
}

template <int N, typename To>
void launch(const Context& context, const LayerNormArgs& a, const To& out) {
    const auto rows = static_cast<unsigned>(a.x.rows);
    const int cols = static_cast<int>(a.x.cols), threads = row_threads(cols / N);
    const Norm p{rows_of(a.x), a.scale.f32(), a.shift.f32(), cols, a.eps};
    if (threads > 0)
        layer_norm_kernel<N, true><<<rows, threads, 0, context.stream>>>(p, out);
    else
        layer_norm_kernel<N, false><<<rows, 1024, 0, context.stream>>>(p, out);
}

} // namespace

Status layer_norm(const Context& context, const LayerNormArgs& args) {
    const bool wide = vectors_of_four(args.x, args.scale, args.shift);
    if (args.out.dtype == DType::kI8 && wide) {
        launch<4>(context, args, code_rows(args.out));
    } else if (args.out.dtype == DType::kI8) {
        LayerNormArgs floats = args;
        float* data = nullptr;
        BONSAI_TRY(context.scratch->get(static_cast<size_t>(args.x.rows * args.x.cols), &data));
        floats.out = f32_matrix(data, args.x.rows, args.x.cols);
        launch<1>(context, floats, rows_of(floats.out));
        return quantize_rows(context, floats.out, quantized_rows(args.out));
    } else if (wide && vectors_of_four(args.out)) {
        launch<4>(context, args, rows_of(args.out));
    } else {
        launch<1>(context, args, rows_of(args.out));
    }
    return check_launch("layer_norm");
}

} // namespace bonsai::cuda
