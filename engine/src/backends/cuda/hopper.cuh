// SPDX-License-Identifier: Apache-2.0
// Hopper's building blocks (sm_90a): mbarriers, the bulk copy engine, wgmma with 16-bit floats.
// PTX ISA 8.x, "mbarrier", "cp.async.bulk", "wgmma". Operands in shared memory are rows (m or n) of
// 128 bytes (64 elements along the sum), 16-byte pieces xored with row % 8, starting at multiples
// of 1024 bytes: the layout that the PTX ISA calls K-major with 128-byte swizzle.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BONSAI_SM90A 1
#endif

#include <cstdint>

namespace bonsai::cuda {

constexpr int kSharedLimit = 227 * 1024; // bytes of shared memory that a block may have
constexpr int kBarrierBytes = 16;        // of a stage of a StageRing

#if defined(BONSAI_SM90A)

// -- mbarriers: addresses in shared memory --

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives; the phase also waits for `bytes` of copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
// Until the phase of parity `parity` is over.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

// A ring of stages in shared memory, and where a thread stands in it. Behind kOffset bytes lie two
// barriers a stage: it is full, it is empty.
template <int kStages, uint32_t kOffset> struct StageRing {
    uint32_t base; // of the shared memory
    int stage = 0;
    uint32_t phase = 0; // parity of the rounds
    __device__ explicit StageRing(uint32_t start) : base(start) {}
    // By one thread, before others wait. Copies fill a stage; `readers` say that it is empty.
    __device__ __forceinline__ void init(int readers) const {
        for (int s = 0; s < kStages; ++s) {
            barrier_init(full(s), 1);
            barrier_init(full(s) + 8, readers);
        }
        barrier_init_fence();
    }
    __device__ __forceinline__ uint32_t full(int s) const {
        return base + kOffset + kBarrierBytes * s;
    }
    __device__ __forceinline__ uint32_t full() const { return full(stage); }
    __device__ __forceinline__ uint32_t empty() const { return full(stage) + 8; }
    __device__ __forceinline__ void next() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};

// -- copies that complete on a barrier --

__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// The box of a two-dimensional tensor map whose first element is (x, y).
__device__ __forceinline__ void box_copy(uint32_t to, const void* map, int x, int y,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}
// The box of a three-dimensional one whose first element is (x, y, z).
__device__ __forceinline__ void box_copy(uint32_t to, const void* map, int x, int y, int z,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}
// Ordinary stores to shared memory become visible to wgmma and the copy engine.
__device__ __forceinline__ void async_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// -- groups of threads --

// Barrier `id` (1 to 15) of `threads` threads of the block.
__device__ __forceinline__ void group_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void group_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int kRegisters> __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters> __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// -- wgmma --

// An operand that starts at `address`; 8 rows span 1024 bytes. 16 elements further along the sum
// are 32 bytes: + 2.
__device__ __forceinline__ uint64_t operand(uint32_t address) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 |
           uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
// The same for an operand whose rows run along the sum: 64 columns (n) a row of 128 bytes, the next
// 64 columns `panel` bytes on. 16 rows further are 2048 bytes.
__device__ __forceinline__ uint64_t operand_columns(uint32_t address, uint32_t panel) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{panel >> 4} << 16 |
           uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the registers across this point.
template <int kCount> __device__ __forceinline__ void pin(float (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+f"(r[i])::"memory");
}

// d[64 x N] += a[64 x 16] b[16 x N], N twice the length of d; without `add`, d = a b. Thread t of
// the warpgroup holds rows 16 (t / 32) + t % 32 / 4 and 8 below: d[4 j], d[4 j + 1] are columns 8 j
// + t % 4 * 2 and the next of the first row, d[4 j + 2], d[4 j + 3] those of the second. In
// registers `a` is held as mma.cuh says, 16 rows a warp.
// clang-format off
#define BONSAI_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BONSAI_D16(i) BONSAI_D4(i), BONSAI_D4(i + 4), BONSAI_D4(i + 8), BONSAI_D4(i + 12)
#define BONSAI_D64(i) BONSAI_D16(i), BONSAI_D16(i + 16), BONSAI_D16(i + 32), BONSAI_D16(i + 48)

__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0;\n}"
        : BONSAI_D64(0)
        : "l"(a), "l"(b), "r"(add));
}

// kColumns: b is an operand_columns.
template <bool kColumns>
__device__ __forceinline__ void wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : BONSAI_D64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kColumns ? 1 : 0));
}

// The same with bf16 operands.
__device__ __forceinline__ void wgmma_brain(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                            int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
        : BONSAI_D64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef BONSAI_D4
#undef BONSAI_D16
#undef BONSAI_D64
// clang-format on

#endif

} // namespace bonsai::cuda
