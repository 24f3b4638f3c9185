// SPDX-License-Identifier: Apache-2.0
// absolute_maximum: the largest magnitude of a matrix.
// Layout:   x [rows, cols] f32 with a row stride.
// Maths:    magnitudes compare like their bits as integers: the maximum is the same in any order.
// Work:     a warp takes rows in turn, or all numbers of a contiguous matrix; one atomic a block.
// Roofline: 4 bytes a number, memory-bound.
#include <algorithm>

#include "backends/cuda/half_rows.cuh"

namespace bonsai::cuda {

static __global__ void __launch_bounds__(256)
    maximum_kernel(const float* x, int64_t rows, int64_t cols, int64_t stride, uint32_t* largest) {
    constexpr int kLoads = 4; // in flight
    uint32_t top = 0;
    const int lane = threadIdx.x % 32;
    const int64_t warps = int64_t{gridDim.x} * 8;
    const int64_t warp = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
    const int64_t pieces = (cols + 32 * kLoads - 1) / (32 * kLoads);
    for (int64_t i = warp; i < rows * pieces; i += warps) {
        const int64_t row = pieces == 1 ? i : i / pieces;
        const int64_t first = (i - row * pieces) * 32 * kLoads + lane;
#pragma unroll
        for (int load = 0; load < kLoads; ++load) {
            const int64_t c = first + 32 * load;
            if (c < cols) top = max(top, __float_as_uint(x[row * stride + c]) & 0x7fffffffu);
        }
    }
    __shared__ uint32_t tops[8];
    for (int offset = 16; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(~0u, top, offset));
    if (lane == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 8; ++i)
        top = max(top, tops[i]);
    atomicMax(largest, top);
}

Status absolute_maximum(const Context& context, const Tensor& x, uint32_t* largest) {
    BONSAI_TRY(check(cudaMemsetAsync(largest, 0, sizeof *largest, context.stream), "cudaMemset"));
    int64_t rows = x.rows, cols = x.cols, stride = x.stride;
    if (cols == stride && rows * cols % 4096 == 0) { // long rows for all warps alike
        rows = rows * cols / 4096;
        cols = stride = 4096;
    }
    const int64_t blocks = (rows * ((cols + 127) / 128) + 7) / 8;
    const auto grid =
        static_cast<unsigned>(std::min<int64_t>(blocks, int64_t{8} * context.multiprocessors));
    maximum_kernel<<<grid, 256, 0, context.stream>>>(x.f32(), rows, cols, stride, largest);
    return check_launch("absolute_maximum");
}

} // namespace bonsai::cuda
