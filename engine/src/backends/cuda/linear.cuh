// SPDX-License-Identifier: Apache-2.0
// Device code that the kernels of `linear` share.
#pragma once

#include "backends/cuda/linear.h"
#include "backends/cuda/weight_layout.cuh"

namespace bonsai::cuda {

// The part that holds tile `tile` of the launch's tiles of W rows.
__device__ __forceinline__ const Part& part_of(const Parts& parts, int tile) {
    int i = 0;
    if (parts.count > 1 && tile >= parts.part[1].first_tile) i = 1;
    if (parts.count > 2 && tile >= parts.part[2].first_tile) i = 2;
    return parts.part[i];
}

// The bits of an f16; what is finite stays finite.
__device__ __forceinline__ __half half_of(float y) {
    const __half nearest = __float2half_rn(y);
    return __hisinf(nearest) != 0 && fabsf(y) <= 3.402823466e38f
               ? __float2half_rn(copysignf(65504.0f, y))
               : nearest;
}

// Outputs of feature n: value(i) for token first + step(i), i < kCount, as far as the tokens are
// below `rows`; bias, gate and accumulation included.
template <int kCount, typename Step, typename Value>
__device__ __forceinline__ void store_feature(const Part& part, int n, int64_t rows, int64_t first,
                                              Step step, Value value) {
    if (n >= part.rows || first >= rows) return;
    const float bias = part.bias ? __ldg(part.bias + n) : 0.0f;
    const float gate = part.gate ? __ldg(part.gate + n) : 1.0f;
    const int left = static_cast<int>(min(rows - first, int64_t{1} << 20));
    const auto stride = static_cast<int>(part.out_stride);
    const int64_t begin = first * part.out_stride + n;
    if (part.accumulate) {
        constexpr int kBatch = kCount < 8 ? kCount : 8; // loads under way at a time
        float* out = static_cast<float*>(part.out) + begin;
#pragma unroll
        for (int at = 0; at < kCount; at += kBatch) {
            float before[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (at + i < kCount && step(at + i) < left) before[i] = out[step(at + i) * stride];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (at + i < kCount && step(at + i) < left)
                    out[step(at + i) * stride] = fmaf(gate, value(at + i) + bias, before[i]);
        }
    } else if (part.half) {
        __half* out = static_cast<__half*>(part.out) + begin;
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (step(i) < left) out[step(i) * stride] = half_of(value(i) + bias);
    } else {
        float* out = static_cast<float*>(part.out) + begin;
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (step(i) < left) out[step(i) * stride] = value(i) + bias;
    }
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane i gives the address of row i % 8 of
// matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, zeros when !valid. Waited for by copies_wait.
__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    const uint4 v = valid ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
#endif
}
__device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// All but the latest kPending groups have arrived.
template <int kPending> __device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

} // namespace bonsai::cuda
