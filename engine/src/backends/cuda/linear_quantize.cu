// SPDX-License-Identifier: Apache-2.0
// quantize_rows: x[m, k] ~ scale[k / group, m] * q[m, k], int8 codes for the products
// Layout:   x f32 or f16 rows with a stride; q row-major; scales token-innermost, as the kernels
//           read them.
// Maths:    quantize_group.cuh.
// Work:     a warp 512 columns of a row: one, two or four groups.
// Roofline: reads 4 (f16: 2) M K bytes, writes M K; memory-bound.
#include "backends/cuda/linear.cuh"
#include "backends/cuda/quantize_group.cuh"
#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kWarps = 8;

// kAligned: rows of x allow four elements at a time.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(32 * kWarps)
    quantize_kernel(const T* x, int64_t x_stride, int64_t rows, int64_t cols, CodeRows out,
                    float* block_sum) {
    const int lane = threadIdx.x & 31;
    const int64_t spans = (cols + kSpan - 1) / kSpan;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5);
    const int64_t m = index / spans, span = index % spans;
    if (m >= rows) return;
    const int pieces = static_cast<int>(min(int64_t{kPieces}, cols / kGroup - span * kPieces));
    const T* from = x + m * x_stride + span * kSpan + 4 * lane;
    float4 v[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        v[i] = i < pieces ? four(from + i * kGroup, kAligned) : make_float4(0, 0, 0, 0);
    out.store(m, span, pieces, lane, v);
    if (!block_sum) return;
    const auto* words = reinterpret_cast<const int*>(out.codes + m * out.stride + span * kSpan);
    for (int i = 0; i < pieces; ++i) {
        int sum = __dp4a(words[32 * i + lane], 0x01010101, 0);
#pragma unroll
        for (int s = 4; s > 0; s >>= 1)
            sum += __shfl_xor_sync(~0u, sum, s);
        if ((lane & 7) == 0)
            block_sum[(4 * (span * kPieces + i) + (lane >> 3)) * out.scale_stride + m] =
                static_cast<float>(sum);
    }
}

template <typename T>
void launch(const Context& context, const Tensor& x, const QuantizedRows& out) {
    const int64_t warps = x.rows * ((x.cols + kSpan - 1) / kSpan);
    const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
    const auto* data = static_cast<const T*>(x.data);
    const CodeRows codes = {out.q, out.stride, out.scale, out.scale_stride, out.group / kGroup};
    const bool aligned =
        reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && x.stride % 4 == 0;
    if (aligned)
        quantize_kernel<true><<<blocks, 32 * kWarps, 0, context.stream>>>(
            data, x.stride, x.rows, x.cols, codes, out.block_sum);
    else
        quantize_kernel<false><<<blocks, 32 * kWarps, 0, context.stream>>>(
            data, x.stride, x.rows, x.cols, codes, out.block_sum);
}

} // namespace

namespace {

size_t scale_count(int64_t rows, int64_t cols, int group) {
    return static_cast<size_t>(scale_groups(cols, group) * quantized_scale_stride(rows));
}
size_t sum_count(int64_t rows, int64_t cols) {
    return static_cast<size_t>(cols / 32 * quantized_scale_stride(rows));
}

} // namespace

uint64_t quantized_bytes(int64_t rows, int64_t cols, int group) {
    return static_cast<uint64_t>(rows * cols) +
           (scale_count(rows, cols, group) + sum_count(rows, cols)) * sizeof(float);
}

Status allocate_quantized(const Context& context, int64_t rows, int64_t cols, int group,
                          QuantizedRows* out) {
    out->rows = rows;
    out->cols = cols;
    out->stride = cols;
    out->group = group;
    out->scale_stride = quantized_scale_stride(rows);
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(rows * cols), &out->q));
    BONSAI_TRY(context.scratch->get(scale_count(rows, cols, group), &out->scale));
    return context.scratch->get(sum_count(rows, cols), &out->block_sum);
}

Status quantize_rows(const Context& context, const Tensor& x, const QuantizedRows& out) {
    if (x.dtype == DType::kF16)
        launch<__half>(context, x, out);
    else
        launch<float>(context, x, out);
    return check_launch("linear: quantize_rows");
}

} // namespace bonsai::cuda
