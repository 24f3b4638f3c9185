// SPDX-License-Identifier: Apache-2.0
// One output element from the elements at the same place of up to two inputs.
#pragma once

#include "backends/cuda/context.h"
#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {

constexpr int kPointwiseThreads = 256;

// f(column, a, b); b is 0 where there is no second input.
template <int N, bool kTwo, typename F>
__global__ void pointwise_kernel(Rows a, Rows b, Rows out, int64_t rows, int64_t packs, F f) {
    const int64_t count = rows * packs, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step) {
        const int64_t row = i / packs, pack = i - row * packs;
        Pack<N> x = load<N>(a.row(row), pack), y = {};
        if constexpr (kTwo) y = load<N>(b.row(row), pack);
#pragma unroll
        for (int j = 0; j < N; ++j)
            x.v[j] = f(pack * N + j, x.v[j], y.v[j]);
        store<N>(out.row(row), pack, x);
    }
}

template <bool kTwo, typename F>
void pointwise(const Context& context, const Tensor& a, const Tensor& b, const Tensor& out, F f) {
    const bool wide = vectors_of_four(a, b, out);
    const int64_t packs = wide ? out.cols / 4 : out.cols;
    const int64_t blocks = (out.rows * packs + kPointwiseThreads - 1) / kPointwiseThreads;
    const auto grid = static_cast<unsigned>(
        blocks < context.multiprocessors * 32 ? blocks : context.multiprocessors * 32);
    if (wide)
        pointwise_kernel<4, kTwo><<<grid, kPointwiseThreads, 0, context.stream>>>(
            rows_of(a), rows_of(b), rows_of(out), out.rows, packs, f);
    else
        pointwise_kernel<1, kTwo><<<grid, kPointwiseThreads, 0, context.stream>>>(
            rows_of(a), rows_of(b), rows_of(out), out.rows, packs, f);
}

} // namespace bonsai::cuda
