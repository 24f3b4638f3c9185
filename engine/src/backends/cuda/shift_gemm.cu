// SPDX-License-Identifier: Apache-2.0
// shift_gemm: see shift_gemm.h; the kernels for all chips, and the right operand's packing.
// Layout:   a [rows, channels] f16; b in tiles of tile_n x 64, pre-swizzled; out f32, row stride.
// Maths:    f16 products, f32 sums (mma m16n8k16), scale, bias and add in f32.
// Work:     a block of 8 warps owns 128 rows x tile_n columns; steps of 64 channels through a ring
//           of stages in shared memory. Rows of 128 bytes, 16-byte pieces xored with row % 8:
//           neither the copies nor ldmatrix meet bank conflicts.
// Roofline: 2 * rows * n * taps * channels flop. 3x3, 512 -> 512 at 256 x 256: 309 GFLOP over 134
//           MB in and out: compute-bound.
#include <algorithm>

#include <cuda_bf16.h>

#include "backends/cuda/mma.cuh"
#include "backends/cuda/shift_gemm.cuh"

namespace bonsai::cuda {

constexpr int kTileM = 128;
constexpr int kThreads = 256;

template <int kTileN, int kStages> struct Stages {
    static constexpr int kBytesA = kTileM * 128;
    static constexpr int kBytesB = kTileN * 128;
    static constexpr int kBytes = kStages * (kBytesA + kBytesB);
};

// Queues the copies of one step into a stage.
template <int kTileN>
__device__ __forceinline__ void load_step(const ShiftGemm& gemm, int64_t m0, int tile, int step,
                                          int chunks, uint32_t stage) {
    const int tap = step / chunks, chunk = step - tap * chunks;
    const __half* a = gemm.a + (m0 + tap_shift(gemm, tap)) * gemm.channels + chunk * kChunk;
#pragma unroll
    for (int i = 0; i < kTileM * 8 / kThreads; ++i) {
        const int row = (threadIdx.x + i * kThreads) / 8, piece = threadIdx.x % 8;
        copy_async(stage + row * 128 + ((piece ^ (row % 8)) << 4),
                   a + int64_t{row} * gemm.channels + piece * 8);
    }
    const auto* b = static_cast<const uint4*>(gemm.b) +
                    (int64_t{tile} * gemm.taps * chunks + step) * (kTileN * 8);
#pragma unroll
    for (int i = threadIdx.x; i < kTileN * 8; i += kThreads)
        copy_async(stage + kTileM * 128 + i * 16, b + i);
}

// One step: kWarpM x kWarpN of a warp, four times 16 channels.
template <int kRows, int kCols>
__device__ __forceinline__ void multiply(uint32_t a, uint32_t b, int lane,
                                         float (&sums)[kRows][kCols][4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        uint32_t af[kRows][4], bf[kCols / 2][4];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int row = i * 16 + lane % 16;
            load_matrices(af[i], a + row * 128 + (((2 * k + lane / 16) ^ (row % 8)) << 4));
        }
#pragma unroll
        for (int j = 0; j < kCols / 2; ++j) {
            const int row = j * 16 + lane % 8 + lane / 16 * 8;
            load_matrices(bf[j], b + row * 128 + (((2 * k + lane / 8 % 2) ^ (row % 8)) << 4));
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int j = 0; j < kCols; ++j)
                mma(sums[i][j], af[i], bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]);
    }
}

template <int kTileN, int kWarpsN, int kStages, bool kPairs>
static __global__ void __launch_bounds__(kThreads) gemm_kernel(const ShiftGemm gemm, int tiles_n) {
    using Ring = Stages<kTileN, kStages>;
    constexpr int kWarpM = kTileM / (8 / kWarpsN), kWarpN = kTileN / kWarpsN;
    constexpr int kRows = kWarpM / 16, kCols = kWarpN / 8;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const int tile = static_cast<int>(blockIdx.x) % tiles_n;
    const int64_t m0 = int64_t{blockIdx.x / tiles_n} * kTileM;
    const int chunks = gemm.channels / kChunk;
    const Steps own = steps_of(gemm);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / kWarpsN * kWarpM, warp_n = warp % kWarpsN * kWarpN;

    float sums[kRows][kCols][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < own.count)
            load_step<kTileN>(gemm, m0, tile, own.first + s, chunks,
                              base + s * (Ring::kBytesA + Ring::kBytesB));
        copy_commit();
    }
    for (int step = 0; step < own.count; ++step) {
        copy_wait<kStages - 2>();
        __syncthreads(); // the stage has arrived for all, and the one before it is free
        const int next = step + kStages - 1;
        if (next < own.count)
            load_step<kTileN>(gemm, m0, tile, own.first + next, chunks,
                              base + next % kStages * (Ring::kBytesA + Ring::kBytesB));
        copy_commit();
        const uint32_t stage = base + step % kStages * (Ring::kBytesA + Ring::kBytesB);
        multiply<kRows, kCols>(stage + warp_m * 128, stage + Ring::kBytesA + warp_n * 128, lane,
                               sums);
    }

    const int n0 = tile * kTileN + warp_n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows * 2; ++i) {
        const int64_t r = output_row(gemm, m0 + warp_m + i * 8 + lane / 4);
        if (r < 0) continue;
        finish<kPairs, kCols>(gemm, r, n0, factor(gemm, r), [&](int j) {
            return make_float2(sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]);
        });
    }
}

template <int kTileN, int kWarpsN, int kStages>
static Status launch(const Context& context, const ShiftGemm& gemm) {
    constexpr int kBytes = Stages<kTileN, kStages>::kBytes;
    const int64_t tiles_n = (gemm.n + kTileN - 1) / kTileN;
    const dim3 grid(static_cast<unsigned>((gemm.rows + kTileM - 1) / kTileM * tiles_n),
                    static_cast<unsigned>(gemm.parts));
    auto* kernel = in_pairs(gemm) ? gemm_kernel<kTileN, kWarpsN, kStages, true>
                                  : gemm_kernel<kTileN, kWarpsN, kStages, false>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "shift_gemm"));
    kernel<<<grid, kThreads, kBytes, context.stream>>>(gemm, static_cast<int>(tiles_n));
    return check_launch("shift_gemm");
}

// One 16-byte piece of the packed operand a thread.
template <typename T, bool kTransposed>
static __global__ void __launch_bounds__(256)
    pack_kernel(const T* b, int64_t stride, int n, int channels, int taps, int tile_n, int chunks,
                int64_t pieces, __half* out) {
    const int64_t index = int64_t{blockIdx.x} * 256 + threadIdx.x;
    if (index >= pieces) return;
    const int row = static_cast<int>(index / 8 % tile_n);
    const int64_t tile = index / 8 / tile_n;
    const int chunk = static_cast<int>(tile % chunks);
    const int tap = static_cast<int>(tile / chunks % taps);
    const int64_t column = tile / chunks / taps * tile_n + row;
    const int c0 = chunk * kChunk + static_cast<int>((index % 8) ^ (row % 8)) * 8;
    uint32_t packed[4];
    for (int i = 0; i < 4; ++i) {
        float x[2];
        for (int j = 0; j < 2; ++j) {
            const int c = c0 + 2 * i + j;
            const bool inside = column < n && c < channels;
            const int64_t at =
                kTransposed ? c * stride + column : column * stride + int64_t{tap} * channels + c;
            x[j] = inside ? static_cast<float>(b[at]) : 0.0f;
        }
        packed[i] = pack_clamped(x[0], x[1]);
    }
    reinterpret_cast<uint4*>(out)[index] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

template <typename T, bool kTransposed>
static Status pack(const Context& context, const GemmPlan& plan, const Tensor& b, int64_t n,
                   int64_t channels, int taps, __half* out) {
    const auto pieces = static_cast<int64_t>(packed_halves(plan, n, channels, taps) / 8);
    pack_kernel<T, kTransposed>
        <<<static_cast<unsigned>((pieces + 255) / 256), 256, 0, context.stream>>>(
            static_cast<const T*>(b.data), b.stride, static_cast<int>(n),
            static_cast<int>(channels), taps, plan.tile_n,
            static_cast<int>(round_up(channels, kChunk) / kChunk), pieces, out);
    return check_launch("pack_weights");
}

Status pack_weights(const Context& context, const GemmPlan& plan, const Tensor& b, int64_t channels,
                    int taps, __half* out) {
    switch (b.dtype) {
    case DType::kF16:
        return pack<__half, false>(context, plan, b, b.rows, channels, taps, out);
    case DType::kBF16:
        return pack<__nv_bfloat16, false>(context, plan, b, b.rows, channels, taps, out);
    default:
        return pack<float, false>(context, plan, b, b.rows, channels, taps, out);
    }
}

Status pack_transposed(const Context& context, const GemmPlan& plan, const Tensor& b, __half* out) {
    return b.dtype == DType::kF16 ? pack<__half, true>(context, plan, b, b.cols, b.rows, 1, out)
                                  : pack<float, true>(context, plan, b, b.cols, b.rows, 1, out);
}

GemmPlan plan_gemm([[maybe_unused]] const Context& context, const ShiftGemm& gemm) {
    if (gemm.n <= 16) return {16, GemmTile::kAnyChip};
#if defined(BONSAI_CUDA_HOPPER)
    if (context.capability == 90) return plan_gemm_hopper(context, gemm);
#endif
    return {128, GemmTile::kAnyChip};
}

Status shift_gemm(const Context& context, const GemmPlan& plan, const ShiftGemm& gemm) {
    if (plan.tile != GemmTile::kAnyChip) return shift_gemm_hopper(context, plan, gemm);
    if (plan.tile_n == 16) return launch<16, 1, 3>(context, gemm);
    // Two stages fit the 64 KB of sm_75, three the 99 KB of sm_86.
    return context.shared_memory < 96 * 1024 ? launch<128, 4, 2>(context, gemm)
                                             : launch<128, 4, 3>(context, gemm);
}

} // namespace bonsai::cuda
