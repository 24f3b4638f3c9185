// SPDX-License-Identifier: Apache-2.0
// shift_gemm_hopper: the product of shift_gemm.h on sm_90a.
// Layout:   a [rows, channels] f16, read as boxes of tile rows x 64 channels through a tensor map;
//           b in pre-swizzled tiles of tile_n x 64.
// Maths:    wgmma, f16 products, f32 sums; scale, bias and add in f32.
// Work:     a block owns a tile of the output: two warpgroups compute, a ninth warp starts the
//           copies of each step of 64 channels into a ring of stages.
// Roofline: as shift_gemm. From the L2 cache a 128 x 256 tile takes 48 KB for 4.2 Mflop.
#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/shift_gemm.cuh"
#include "backends/cuda/tensor_map.h"

namespace bonsai::cuda {

constexpr int kThreads = 288; // two warpgroups and a warp

namespace {

// kRows: times 64 rows of a warpgroup. kBlocks: of a multiprocessor.
template <int kRowsOf64, int kColumns, int kDepth, int kResident> struct Tile {
    static constexpr int kRows = kRowsOf64, kTileN = kColumns, kStages = kDepth;
    static constexpr int kBlocks = kResident;
    static constexpr int kTileM = 2 * 64 * kRows;
    static constexpr int kBytesA = kTileM * 128, kBytesB = kTileN * 128;
    static constexpr int kStage = kBytesA + kBytesB;
    static constexpr int kBarriers = kStages * kStage;                // full, empty
    static constexpr int kBytes = kBarriers + 2 * kStages * 8 + 1024; // start rounded up to 1024
};
using TallTile = Tile<2, 128, 4, 1>;
using SmallTile = Tile<1, 128, 3, 2>;

} // namespace

#if defined(BONSAI_SM90A)

template <typename T>
__device__ __forceinline__ void produce(const ShiftGemm& gemm, const CUtensorMap& map,
                                        uint32_t base, int64_t m0, int tile) {
    const int chunks = gemm.channels / kChunk;
    const auto* b = static_cast<const __half*>(gemm.b) +
                    int64_t{tile} * gemm.taps * chunks * (T::kTileN * kChunk);
    const Steps own = steps_of(gemm);
    for (int step = 0; step < own.count; ++step) {
        const int at = own.first + step, tap = at / chunks, chunk = at - tap * chunks;
        const int stage = step % T::kStages;
        const uint32_t full = base + T::kBarriers + stage * 8;
        const uint32_t to = base + stage * T::kStage;
        // The first round finds all stages empty.
        barrier_wait(full + T::kStages * 8, step / T::kStages % 2 ^ 1);
        barrier_expect(full, T::kStage);
        box_copy(to, &map, chunk * kChunk, static_cast<int>(m0 + tap_shift(gemm, tap)), full);
        bulk_copy(to + T::kBytesA, b + int64_t{at} * (T::kTileN * kChunk), T::kBytesB, full);
    }
}

template <typename T, bool kPairs>
__device__ __forceinline__ void consume(const ShiftGemm& gemm, uint32_t base, int group, int64_t m0,
                                        int tile) {
    const int steps = steps_of(gemm).count;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    float sums[T::kRows][T::kTileN / 2];
    for (int step = 0; step < steps; ++step) {
        const int stage = step % T::kStages;
        const uint32_t full = base + T::kBarriers + stage * 8;
        const uint32_t a = base + stage * T::kStage + group * (64 * T::kRows * 128);
        const uint64_t left = operand(a), right = operand(base + stage * T::kStage + T::kBytesA);
        barrier_wait(full, step / T::kStages % 2);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < T::kRows; ++i)
                wgmma(sums[i], left + i * (64 * 128 >> 4) + 2 * k, right + 2 * k,
                      step > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>(); // the products of the step before: its stage is free
        const int last = (step + T::kStages - 1) % T::kStages;
        if (thread == 0 && step > 0) barrier_arrive(base + T::kBarriers + (T::kStages + last) * 8);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < T::kRows; ++i)
        pin(sums[i]);
    const int n0 = tile * T::kTileN + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * T::kRows; ++i) {
        const int64_t m =
            m0 + (group * T::kRows + i / 2) * 64 + thread / 32 * 16 + i % 2 * 8 + thread % 32 / 4;
        const int64_t r = output_row(gemm, m);
        if (r < 0) continue;
        finish<kPairs, T::kTileN / 8>(gemm, r, n0, factor(gemm, r), [&](int j) {
            return make_float2(sums[i / 2][4 * j + i % 2 * 2], sums[i / 2][4 * j + i % 2 * 2 + 1]);
        });
    }
}

#endif

template <typename T, bool kPairs>
static __global__ void __launch_bounds__(kThreads, T::kBlocks)
    gemm_kernel(const ShiftGemm gemm, const __grid_constant__ CUtensorMap map, int tiles_n) {
#if defined(BONSAI_SM90A)
    extern __shared__ unsigned char shared[];
    const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < T::kStages; ++stage) {
            barrier_init(base + T::kBarriers + stage * 8, 1);
            barrier_init(base + T::kBarriers + (T::kStages + stage) * 8, 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    const int tile = static_cast<int>(blockIdx.x) % tiles_n;
    const int64_t m0 = int64_t{blockIdx.x / tiles_n} * T::kTileM;
    if (group == 2) {
        if (threadIdx.x == 256) produce<T>(gemm, map, base, m0, tile);
    } else {
        consume<T, kPairs>(gemm, base, group, m0, tile);
    }
#endif
}

template <typename T> static Status launch(const Context& context, const ShiftGemm& gemm) {
    CUtensorMap map;
    BONSAI_TRY(make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, gemm.a, gemm.a_rows, gemm.channels,
                               int64_t{gemm.channels} * 2, T::kTileM, &map));
    const int64_t tiles_n = (gemm.n + T::kTileN - 1) / T::kTileN;
    const dim3 grid(static_cast<unsigned>((gemm.rows + T::kTileM - 1) / T::kTileM * tiles_n),
                    static_cast<unsigned>(gemm.parts));
    auto* kernel = in_pairs(gemm) ? gemm_kernel<T, true> : gemm_kernel<T, false>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes),
              "shift_gemm"));
    kernel<<<grid, kThreads, T::kBytes, context.stream>>>(gemm, map, static_cast<int>(tiles_n));
    return check_launch("shift_gemm");
}

// Two small blocks hide each other's start and end; without `add` to wait for, tall ones take less
// from the L2 cache where they are many.
GemmPlan plan_gemm_hopper(const Context& context, const ShiftGemm& gemm) {
    const int64_t tall_tiles = (gemm.rows + 255) / 256 * ((gemm.n + 127) / 128);
    const bool tall = !gemm.adds && tall_tiles >= 3 * int64_t{context.multiprocessors};
    return {128, tall ? GemmTile::kTall : GemmTile::kSmall};
}

Status shift_gemm_hopper(const Context& context, const GemmPlan& plan, const ShiftGemm& gemm) {
    return plan.tile == GemmTile::kTall ? launch<TallTile>(context, gemm)
                                        : launch<SmallTile>(context, gemm);
}

} // namespace bonsai::cuda
