// SPDX-License-Identifier: Apache-2.0
// layer_norm: out[s, d] = (1 + scale[d]) * (x[s, d] - mean) * rsqrt(var + eps) + shift[d]
// Layout:   x f32, out f32 or I8, rows with a stride; scale, shift [D].
// Maths:    f32, sums in a fixed tree; the variance from differences to the mean, warp by warp,
//           joined as Chan, Golub, LeVeque 1979 do.
// Work:     up to 4096 columns: blocks take rows in turn, a warp holds 512 columns of a row and of
//           scale and shift in registers. Longer rows, and those that allow no 16 bytes at a time,
//           are read three times, a block a row.
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

template <int N> __global__ void layer_norm_kernel(Norm p, Rows out) {
    const int64_t packs = p.cols / N;
    const auto count = static_cast<float>(p.cols);
    RowCache<N, false> row{p.x.row(blockIdx.x), {}};
    const float mean = row.sum(packs, [](float v) { return v; }) / count;
    const float squares = row.sum(packs, [=](float v) { return (v - mean) * (v - mean); });
    const float inverse = rsqrtf(squares / count + p.eps);
    each_pack<false>(packs, [&](int i, int64_t pack) {
        Pack<N> v = row.get(i, pack);
        const Pack<N> a = load<N>(p.scale, pack), b = load<N>(p.shift, pack);
#pragma unroll
        for (int j = 0; j < N; ++j)
            v.v[j] = (1.0f + a.v[j]) * ((v.v[j] - mean) * inverse) + b.v[j];
        store<N>(out.row(blockIdx.x), pack, v);
    });
}

__device__ __forceinline__ float sum_of(float4 v) {
    return (v.x + v.y) + (v.z + v.w);
}
__device__ __forceinline__ float4 minus(float4 v, float m) {
    return make_float4(v.x - m, v.y - m, v.z - m, v.w - m);
}
__device__ __forceinline__ float squares_of(float4 v) {
    return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
}

constexpr int kHeldWarps = 8; // of a block at most
constexpr int kHeldColumns = kHeldWarps * kSpan;
constexpr int kHeldBlocks = 4; // of a multiprocessor at 3072 columns

// Mean and sum of squared differences to it of the row, from each warp's sum and its squares about
// its own mean. `parts` may be used again after the next call with others.
__device__ __forceinline__ float2 join(float2* parts, float sum, float squares, int cols) {
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = make_float2(sum, squares);
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    float all = 0, about = 0;
    for (int w = 0; w < warps; ++w)
        all += parts[w].x;
    const float mean = all / static_cast<float>(cols);
    for (int w = 0; w < warps; ++w) {
        const auto count = static_cast<float>(min(cols - w * kSpan, kSpan));
        const float off = parts[w].x / count - mean;
        about += parts[w].y + count * off * off;
    }
    return make_float2(mean, about);
}

// A lane's columns of a row, zeros behind the last.
__device__ __forceinline__ void fetch(const float* row, int first, int cols, float4 (&v)[kPieces]) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        v[i] = first + 128 * i < cols ? *reinterpret_cast<const float4*>(row + first + 128 * i)
                                      : float4();
}

// cols % 4 = 0; To: Rows or CodeRows.
template <typename To>
__global__ void __launch_bounds__(32 * kHeldWarps, 3) held_norm_kernel(Norm p, int rows, To out) {
    __shared__ float2 parts[2][kHeldWarps];
    const int warp = static_cast<int>(threadIdx.x) / kWarp,
              lane = static_cast<int>(threadIdx.x) % kWarp;
    const int first = warp * kSpan + 4 * lane, count = min(p.cols - warp * kSpan, kSpan);
    float4 v[kPieces], scale[kPieces], shift[kPieces];
    fetch(p.scale, first, p.cols, scale);
    fetch(p.shift, first, p.cols, shift);
    int turn = 0;
    for (int row = static_cast<int>(blockIdx.x); row < rows;
         row += static_cast<int>(gridDim.x), turn ^= 1) {
        fetch(p.x.row(row), first, p.cols, v);
        const float sum = warp_sum((sum_of(v[0]) + sum_of(v[1])) + (sum_of(v[2]) + sum_of(v[3])));
        const float near = sum / static_cast<float>(count);
        float squares = 0;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            squares += first + 128 * i < p.cols ? squares_of(minus(v[i], near)) : 0.0f;
        const float2 moments = join(parts[turn], sum, warp_sum(squares), p.cols);
        const float inverse = rsqrtf(moments.y / static_cast<float>(p.cols) + p.eps);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const float4 d = minus(v[i], moments.x);
            v[i] = first + 128 * i < p.cols
                       ? make_float4((1.0f + scale[i].x) * (d.x * inverse) + shift[i].x,
                                     (1.0f + scale[i].y) * (d.y * inverse) + shift[i].y,
                                     (1.0f + scale[i].z) * (d.z * inverse) + shift[i].z,
                                     (1.0f + scale[i].w) * (d.w * inverse) + shift[i].w)
                       : float4();
        }
        if constexpr (std::is_same_v<To, CodeRows>) {
            out.store(row, warp, (count + 127) / 128, lane, v);
        } else {
#pragma unroll
            for (int i = 0; i < kPieces; ++i)
                if (first + 128 * i < p.cols)
                    *reinterpret_cast<float4*>(out.row(row) + first + 128 * i) = v[i];
        }
    }
}

// x and the parameters allow 16 bytes at a time, and out, too, if it holds floats.
Status launch_held(const Context& context, const Norm& p, const Tensor& out) {
    const int rows = static_cast<int>(out.rows), most = kHeldBlocks * context.multiprocessors;
    const int turns = (rows + most - 1) / most; // the same for all blocks, or one less
    const auto blocks = static_cast<unsigned>((rows + turns - 1) / turns);
    const int threads = (p.cols + kSpan - 1) / kSpan * kWarp;
    if (out.dtype == DType::kI8)
        held_norm_kernel<<<blocks, threads, 0, context.stream>>>(p, rows, code_rows(out));
    else
        held_norm_kernel<<<blocks, threads, 0, context.stream>>>(p, rows, rows_of(out));
    return check_launch("layer_norm");
}

} // namespace

Status layer_norm(const Context& context, const LayerNormArgs& args) {
    const Norm p{rows_of(args.x), args.scale.f32(), args.shift.f32(), static_cast<int>(args.x.cols),
                 args.eps};
    const bool codes = args.out.dtype == DType::kI8,
               wide = vectors_of_four(args.x, args.scale, args.shift);
    if (wide && p.cols <= kHeldColumns && (codes || vectors_of_four(args.out)))
        return launch_held(context, p, args.out);
    Tensor floats = args.out;
    if (codes) {
        float* data = nullptr;
        BONSAI_TRY(context.scratch->get(static_cast<size_t>(args.x.rows * args.x.cols), &data));
        floats = f32_matrix(data, args.x.rows, args.x.cols);
    }
    const auto rows = static_cast<unsigned>(args.x.rows);
    if (wide && vectors_of_four(floats))
        layer_norm_kernel<4><<<rows, 1024, 0, context.stream>>>(p, rows_of(floats));
    else
        layer_norm_kernel<1><<<rows, 1024, 0, context.stream>>>(p, rows_of(floats));
    BONSAI_TRY(check_launch("layer_norm"));
    return codes ? quantize_rows(context, floats, quantized_rows(args.out)) : Status();
}

} // namespace bonsai::cuda
