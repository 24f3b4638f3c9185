// SPDX-License-Identifier: Apache-2.0
// Warp-wide building blocks of the f16 tensor-core kernels, sm_75 and up: asynchronous copies into
// shared memory, ldmatrix, and mma m16n8k16 with f32 sums. PTX ISA 8.x, "Matrix fragments".
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace bonsai::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, both aligned to 16. Before sm_80 a plain copy.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
    const uint4 v = *static_cast<const uint4*>(from);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
#endif
}
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// All but the thread's last `kPending` groups have arrived.
template <int kPending> __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// d[16 x 8] += a[16 x 16] b[16 x 8]. Lane (g = lane / 4, t = lane % 4) holds of a: rows g, g + 8,
// g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 (two each); of b: rows 2t, 2t + 8 (two each), column
// g; of d: row g columns 2t, 2t + 1, then row g + 8.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, "
                 "{%8}, {%0, %1, %2, %3};\n"
                 "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, "
                 "{%9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Numbers beyond f16's range become its largest, NaN stays NaN.
__device__ __forceinline__ __half to_half(float x) {
    return __float2half_rn(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t pack_clamped(float low, float high) {
    const __half2 pair = __halves2half2(to_half(low), to_half(high));
    return reinterpret_cast<const uint32_t&>(pair);
}
// What rounding to f16 lost.
__device__ __forceinline__ uint32_t pack_rest(float low, float high, uint32_t rounded) {
    const float2 kept = __half22float2(reinterpret_cast<const __half2&>(rounded));
    return pack_half(low - kept.x, high - kept.y);
}

// 2^x to 2 units in the last place; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The power of two, between 2^-60 and 2^60, that brings numbers of magnitude up to `largest` into
// [2^13, 2^14): f16 operands then neither overflow nor lose digits, and the product of two such
// factors is a normal number. 1 for zero, infinite and NaN.
__host__ __device__ inline float range_scale(float largest) {
    if (!(largest > 0) || largest > 3.0e38f) return 1.0f;
    int exponent = 0;
    frexpf(largest, &exponent); // largest = f * 2^exponent, f in [0.5, 1)
    const int shift = 14 - exponent;
    return ldexpf(1.0f, shift > 60 ? 60 : shift < -60 ? -60 : shift);
}

} // namespace bonsai::cuda
