// SPDX-License-Identifier: Apache-2.0
// embed_rows: out[i] = table[i]; the backend has gathered the rows
// Layout:   table of any type as weights lie on the device (weight_layout.h); out f32 rows with a
//           stride.
// Work:     a thread four neighbouring columns.
// Roofline: a few MB once a prompt.
#include "backends/cuda/kernels.h"
#include "backends/cuda/weight_layout.cuh"

namespace bonsai::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void embed_rows_kernel(DType dtype, const uint8_t* table, int64_t cols, float* out,
                                  int64_t stride) {
    const int64_t row = blockIdx.x;
    for (int64_t c = 4 * static_cast<int64_t>(threadIdx.x); c < cols; c += 4 * kThreads) {
        const float4 v = weight_values(dtype, table, cols, row, c);
        const float values[4] = {v.x, v.y, v.z, v.w};
        for (int j = 0; j < 4 && c + j < cols; ++j)
            out[row * stride + c + j] = values[j];
    }
}

} // namespace

Status embed_rows(const Context& context, const EmbedRowsArgs& args) {
    embed_rows_kernel<<<static_cast<unsigned>(args.out.rows), kThreads, 0, context.stream>>>(
        args.table.dtype, static_cast<const uint8_t*>(args.table.data), args.table.cols,
        args.out.f32(), args.out.stride);
    return check_launch("embed_rows");
}

// The smallest kernel here stands for all: they are compiled for the same processors.
Status check_code() {
    cudaFuncAttributes attributes{};
    return check(cudaFuncGetAttributes(&attributes, embed_rows_kernel), "cudaFuncGetAttributes");
}

} // namespace bonsai::cuda
