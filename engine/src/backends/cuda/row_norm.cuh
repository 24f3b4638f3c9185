// SPDX-License-Identifier: Apache-2.0
// The walk that rms_norm and layer_norm share: a block holds its row in registers from the read to
// the write, so memory is touched once each way.
#pragma once

#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {

constexpr int kPacks = 4; // of a row that a thread holds

// Threads for a row of `packs`, at least a warp; 0: the row is too long to be held.
inline int row_threads(int64_t packs) {
    const int64_t threads = (packs + kPacks - 1) / kPacks;
    const int64_t whole = (threads + kWarp - 1) / kWarp * kWarp;
    return whole <= 1024 ? static_cast<int>(whole) : 0;
}

// Calls body(i, pack) for the packs of this thread; i counts them and is a constant when unrolled.
template <bool kHeld, typename Body> __device__ void each_pack(int64_t packs, Body body) {
    if constexpr (kHeld) {
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int64_t pack = threadIdx.x + static_cast<int64_t>(i) * blockDim.x;
            if (pack < packs) body(i, pack);
        }
    } else {
        for (int64_t pack = threadIdx.x; pack < packs; pack += blockDim.x)
            body(0, pack);
    }
}

// A row in registers, or read again each time.
template <int N, bool kHeld> struct RowCache {
    const float* row;
    Pack<N> packs[kHeld ? kPacks : 1];

    __device__ Pack<N> get(int i, int64_t pack) const {
        return kHeld ? packs[kHeld ? i : 0] : load<N>(row, pack);
    }
    __device__ void fill(int64_t count) {
        if constexpr (kHeld)
            each_pack<kHeld>(count, [&](int i, int64_t pack) { packs[i] = load<N>(row, pack); });
    }
    // Sum over the row of f(x).
    template <typename F> __device__ float sum(int64_t count, F f) const {
        float total = 0;
        each_pack<kHeld>(count, [&](int i, int64_t pack) {
            const Pack<N> x = get(i, pack);
#pragma unroll
            for (int j = 0; j < N; ++j)
                total += f(x.v[j]);
        });
        return block_sum(total);
    }
};

} // namespace bonsai::cuda
