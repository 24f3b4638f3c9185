// SPDX-License-Identifier: Apache-2.0
// What the kernels of shift_gemm share: where a step along the sum reads, and the last line.
#pragma once

#include "backends/cuda/shift_gemm.h"

namespace bonsai::cuda {

// Rows of `a` that tap `tap` looks ahead.
__device__ __forceinline__ int64_t tap_shift(const ShiftGemm& gemm, int tap) {
    return gemm.taps == 1 ? 0 : tap / 3 * gemm.pitch + tap % 3;
}

// The steps along the sum of this block, which is blockIdx.y of gemm.parts.
struct Steps {
    int first, count;
};
__device__ __forceinline__ Steps steps_of(const ShiftGemm& gemm) {
    const int all = gemm.taps * (gemm.channels / kChunk), part = static_cast<int>(blockIdx.y);
    const int first = part * all / gemm.parts;
    return {first, (part + 1) * all / gemm.parts - first};
}

// Row of the output for row m of the sum, -1 for those that are dropped.
__device__ __forceinline__ int64_t output_row(const ShiftGemm& gemm, int64_t m) {
    if (m >= gemm.rows) return -1;
    if (gemm.pitch == gemm.width) return m;
    const auto line =
        static_cast<int64_t>(static_cast<uint32_t>(m) / static_cast<uint32_t>(gemm.pitch));
    const int64_t column = m - line * gemm.pitch;
    return column < gemm.width ? line * gemm.width + column : -1;
}

// kCount pairs of columns of output row r, the first of pair j at n + 8 j; value(j) gives a pair's
// sums. kPairs: pairs are whole and their addresses aligned to 8 bytes. `add` may be `out`: a batch
// is read before it is written, to have several reads in flight.
template <bool kPairs, int kCount, typename Value>
__device__ __forceinline__ void finish(const ShiftGemm& gemm, int64_t r, int n, float scale,
                                       const Value& value) {
    constexpr int kBatch = kCount > 16 ? 8 : kCount > 4 ? 4 : kCount;
    float* out = gemm.out + blockIdx.y * gemm.part_stride + r * gemm.out_stride + n;
    const float* add = gemm.add + (gemm.add != nullptr ? r * gemm.add_stride + n : 0);
#pragma unroll
    for (int first = 0; first < kCount; first += kBatch) {
        float2 y[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int j = (first + i) * 8;
            y[i] = make_float2(0, 0);
            const bool left = n + j < gemm.n, right = kPairs ? left : n + j + 1 < gemm.n;
            if (gemm.add != nullptr) {
                if (kPairs && left) y[i] = *reinterpret_cast<const float2*>(add + j);
                if (!kPairs && left) y[i].x = add[j];
                if (!kPairs && right) y[i].y = add[j + 1];
            }
            if (gemm.bias != nullptr) {
                if (left) y[i].x += __ldg(gemm.bias + n + j);
                if (right) y[i].y += __ldg(gemm.bias + n + j + 1);
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int j = (first + i) * 8;
            const float2 sums = value(first + i);
            y[i].x = fmaf(sums.x, scale, y[i].x);
            y[i].y = fmaf(sums.y, scale, y[i].y);
            if (kPairs) {
                if (n + j < gemm.n) *reinterpret_cast<float2*>(out + j) = y[i];
            } else {
                if (n + j < gemm.n) out[j] = y[i].x;
                if (n + j + 1 < gemm.n) out[j + 1] = y[i].y;
            }
        }
    }
}

// The factor of output row r.
__device__ __forceinline__ float factor(const ShiftGemm& gemm, int64_t r) {
    const float alpha = gemm.alpha != nullptr ? *gemm.alpha : 1.0f;
    return gemm.row_scale != nullptr ? alpha * gemm.row_scale[r] : alpha;
}

inline bool in_pairs(const ShiftGemm& gemm) {
    const auto aligned = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 8 == 0; };
    return gemm.n % 2 == 0 && gemm.out_stride % 2 == 0 && aligned(gemm.out) &&
           (gemm.add == nullptr || (gemm.add_stride % 2 == 0 && aligned(gemm.add)));
}

} // namespace bonsai::cuda
