// SPDX-License-Identifier: Apache-2.0
// Device code that the kernels of `linear` share.
#pragma once

#include <type_traits>

#include "backends/cuda/linear.h"
#include "backends/cuda/mma.cuh"
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

// Calls launch(std::integral_constant<DType, type>) for a type that weights have on the device.
template <typename Launch> Status for_weight_type(DType dtype, const Launch& launch) {
    switch (dtype) {
    case DType::kF32:
        launch(std::integral_constant<DType, DType::kF32>());
        break;
    case DType::kF16:
        launch(std::integral_constant<DType, DType::kF16>());
        break;
    case DType::kBF16:
        launch(std::integral_constant<DType, DType::kBF16>());
        break;
    case DType::kQ8_0:
        launch(std::integral_constant<DType, DType::kQ8_0>());
        break;
    case DType::kQ4_0:
        launch(std::integral_constant<DType, DType::kQ4_0>());
        break;
    case DType::kQ4_1:
        launch(std::integral_constant<DType, DType::kQ4_1>());
        break;
    case DType::kQ1_0:
        launch(std::integral_constant<DType, DType::kQ1_0>());
        break;
    case DType::kPQ2_0:
        launch(std::integral_constant<DType, DType::kPQ2_0>());
        break;
    case DType::kI8:     // no weight
    case DType::kPTQ1_0: // repacked when loaded
        return fail(ErrorCode::kUnsupported, "linear: weight is %s, expected its device layout",
                    dtype_info(dtype).name);
    }
    return Status();
}

// 16 bytes from global to shared memory, zeros when !valid. Waited for by copy_wait.
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
} // namespace bonsai::cuda
