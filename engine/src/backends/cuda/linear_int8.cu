// SPDX-License-Identifier: Apache-2.0
// linear_int8: y[M,N] = x[M,K] W[N,K]^T with int8 x and block-quantised W, mma.sync
// Layout:   x: linear_quantize.cu. W: weight_layout.h, read from global memory straight into the A
//           operand, unpacked by shifts and masks. y f32 rows with a stride.
// Maths:    per block of 32 or group of 128: d = sum of codes, exact in s32;
//           y += x_scale * (w_scale * d + w_offset * sum of x codes), f32, K ascending.
//           K % 128 = 0.
// Work:     a block owns 128 features x 64 or 128 tokens of y, a warp 32 x half of them; stages of
//           K = 128 of x in shared memory, 16-byte pieces swizzled by the token; packed weights a
//           stage ahead in registers.
// Roofline: 2 M N K operations over M K (N / 128) + N K / 4 (M / 128) bytes out of L2;
//           compute-bound from M = 128 on. Serves chips without wgmma, and int8 x with types of
//           blocks of 32.
#include "backends/cuda/linear.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kTileRows = 128, kThreads = 256, kStages = 3;
constexpr int kWarpSlabs = 2; // 32 features

// d = a b, or d += a b: 16 features x 8 tokens x 32 of K.
__device__ __forceinline__ void multiply(int (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, bool first) {
    if (first) d[0] = d[1] = d[2] = d[3] = 0; // the zero register, no instruction
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%10,%11,%12,%13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(d[0]),
                   "r"(d[1]), "r"(d[2]), "r"(d[3]));
#else // the same lanes hold the same elements in four smaller products
#pragma unroll
    for (int i = 0; i < 4; ++i)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+r"(d[2 * (i & 1)]), "+r"(d[2 * (i & 1) + 1])
                     : "r"(a[i]), "r"(i < 2 ? b0 : b1));
#endif
}

template <DType kType, int kTileTokens> class Tile {
  public:
    using Type = SlabType<kType>;
    static constexpr int kWarpColumns = kTileTokens / 16; // of 8 tokens
    static constexpr int kCodesBytes = kTileTokens * kGroup, kRowOfScales = kTileTokens * 4;
    static constexpr int kStageBytes = kCodesBytes + kRowOfScales * (Type::kOffset ? 5 : 1);
    static constexpr int kUnits = kGroup / Type::kBlock; // of a slab in a stage
    static constexpr int kSteps = Type::kBlock / 32;     // of a unit

    __device__ Tile(const Part& part, const QuantizedRows& x, int first_row, int first_token,
                    uint8_t* shared)
        : x_(x), shared_(shared), lane_(threadIdx.x & 31), first_token_(first_token) {
        const int warp = threadIdx.x >> 5;
        row_ = first_row + 32 * (warp >> 1);
        column_ = 8 * kWarpColumns * (warp & 1);
        const int64_t units = x.cols / Type::kBlock;
        const int last = (part.rows - 1) / kSlabRows;
#pragma unroll
        for (int t = 0; t < kWarpSlabs; ++t)
            slab_[t] =
                part.weight + min(row_ / kSlabRows + t, last) * units * kSlabUnitBytes<kType>;
    }

    __device__ __forceinline__ void run() {
        const int groups = static_cast<int>(x_.cols / kGroup);
        for (int s = 0; s < kStages - 1; ++s) {
            if (s < groups) load_stage(s);
            copy_commit();
        }
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
            load_weights(u, u);
        for (int g = 0; g < groups; ++g) {
            copy_wait<kStages - 2>();
            __syncthreads();
            if (g + kStages - 1 < groups) load_stage(g + kStages - 1);
            copy_commit();
            multiply_stage(g, groups);
        }
    }

    __device__ __forceinline__ void store(const Part& part) const {
#pragma unroll
        for (int t = 0; t < kWarpSlabs; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int n = row_ + kSlabRows * t + 8 * h + (lane_ >> 2);
                const int64_t first = first_token_ + column_ + 2 * (lane_ & 3);
                store_feature<2 * kWarpColumns>(
                    part, n, x_.rows, first, [](int i) { return 8 * (i >> 1) + (i & 1); },
                    [&](int i) { return sum_[t][i >> 1][2 * h + (i & 1)]; });
            }
    }

  private:
    __device__ __forceinline__ uint8_t* stage(int g) const {
        return shared_ + g % kStages * kStageBytes;
    }

    __device__ __forceinline__ void load_stage(int g) const {
        const uint32_t to = shared_address(stage(g));
#pragma unroll
        for (int i = 0; i < kTileTokens * 8 / kThreads; ++i) {
            const int piece = i * kThreads + threadIdx.x, token = piece >> 3, chunk = piece & 7;
            const int64_t m = first_token_ + token;
            copy16(to + token * kGroup + ((chunk ^ (token & 7)) << 4),
                   x_.q + m * x_.stride + static_cast<int64_t>(g) * kGroup + 16 * chunk,
                   m < x_.rows);
        }
        constexpr int kPieces = kTileTokens / 4; // of a row of scales
        const int row = threadIdx.x / kPieces, at = 4 * (threadIdx.x % kPieces);
        if (row == 0)
            copy16(to + kCodesBytes + 4 * at,
                   x_.scale + x_.scale_row(g) * x_.scale_stride + first_token_ + at, true);
        else if (Type::kOffset && row < 5)
            copy16(to + kCodesBytes + row * kRowOfScales + 4 * at,
                   x_.block_sum + (4 * g + row - 1) * x_.scale_stride + first_token_ + at, true);
    }

    // Unit `unit` of the slabs into place u.
    __device__ __forceinline__ void load_weights(int unit, int u) {
#pragma unroll
        for (int t = 0; t < kWarpSlabs; ++t)
            load_unit<kType>(slab_[t] + static_cast<int64_t>(unit) * kSlabUnitBytes<kType>, lane_,
                             next_[u][t]);
    }

    __device__ __forceinline__ void multiply_stage(int g, int groups) {
        const uint32_t codes = shared_address(stage(g));
        const auto* scales =
            reinterpret_cast<const float*>(stage(g) + kCodesBytes) + column_ + 2 * (lane_ & 3);
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            LaneUnit<kType> unit[kWarpSlabs];
#pragma unroll
            for (int t = 0; t < kWarpSlabs; ++t)
                unit[t] = next_[u][t];
            if (g + 1 < groups) load_weights((g + 1) * kUnits + u, u);
            int d[kWarpSlabs][kWarpColumns][4];
#pragma unroll
            for (int s = 0; s < kSteps; ++s)
                multiply_step(codes, u * kSteps + s, s, unit, d);
            promote(scales, u, unit, d);
        }
    }

    // K step `step` of the stage, step s of the units.
    __device__ __forceinline__ void multiply_step(uint32_t codes, int step, int s,
                                                  const LaneUnit<kType> (&unit)[kWarpSlabs],
                                                  int (&d)[kWarpSlabs][kWarpColumns][4]) const {
        uint32_t a[kWarpSlabs][4];
#pragma unroll
        for (int t = 0; t < kWarpSlabs; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[t][i] = operand_word<kType>(unit[t].codes, s, i);
#pragma unroll
        for (int j = 0; j < kWarpColumns; j += 2) {
            const int matrix = lane_ >> 3, chunk = 2 * step + (matrix & 1);
            const int token = column_ + 8 * j + 8 * (matrix >> 1) + (lane_ & 7);
            uint32_t b[4];
            load_matrices(b, codes + token * kGroup + ((chunk ^ (token & 7)) << 4));
#pragma unroll
            for (int t = 0; t < kWarpSlabs; ++t) {
                multiply(d[t][j], a[t], b[0], b[1], s == 0);
                multiply(d[t][j + 1], a[t], b[2], b[3], s == 0);
            }
        }
    }

    __device__ __forceinline__ void promote(const float* scales, int u,
                                            const LaneUnit<kType> (&unit)[kWarpSlabs],
                                            const int (&d)[kWarpSlabs][kWarpColumns][4]) {
        float2 scale[kWarpSlabs], offset[kWarpSlabs];
#pragma unroll
        for (int t = 0; t < kWarpSlabs; ++t) {
            scale[t] = scale_pair(unit[t].scales);
            scale[t].x *= 1.0f / Type::kFactor;
            scale[t].y *= 1.0f / Type::kFactor;
            if (Type::kOffset) offset[t] = scale_pair(unit[t].offsets);
        }
#pragma unroll
        for (int j = 0; j < kWarpColumns; ++j) {
            const float2 xs = *reinterpret_cast<const float2*>(scales + 8 * j);
            float2 sums = make_float2(0, 0);
            if (Type::kOffset)
                sums = *reinterpret_cast<const float2*>(scales + 8 * j + (u + 1) * kTileTokens);
#pragma unroll
            for (int t = 0; t < kWarpSlabs; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float part = (i < 2 ? scale[t].x : scale[t].y) * static_cast<float>(d[t][j][i]);
                    if (Type::kOffset)
                        part =
                            fmaf(i < 2 ? offset[t].x : offset[t].y, i & 1 ? sums.y : sums.x, part);
                    sum_[t][j][i] = fmaf(i & 1 ? xs.y : xs.x, part, sum_[t][j][i]);
                }
        }
    }

    const QuantizedRows& x_;
    uint8_t* shared_;
    int lane_, first_token_, row_, column_;
    const uint8_t* slab_[kWarpSlabs];
    LaneUnit<kType> next_[kUnits][kWarpSlabs];
    float sum_[kWarpSlabs][kWarpColumns][4] = {};
};

template <DType kType, int kTileTokens>
__global__ void __launch_bounds__(kThreads, kTileTokens == 64 ? 2 : 1)
    int8_kernel(const __grid_constant__ Parts parts, const __grid_constant__ QuantizedRows x) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int tile = static_cast<int>(blockIdx.y);
    const Part& part = part_of(parts, tile);
    Tile<kType, kTileTokens> work(part, x, (tile - part.first_tile) * kTileRows,
                                  static_cast<int>(blockIdx.x) * kTileTokens, shared);
    work.run();
    work.store(part);
}

template <DType kType, int kTileTokens>
Status launch_tile(const Context& context, const QuantizedRows& x, const Parts& parts) {
    constexpr int kBytes = kStages * Tile<kType, kTileTokens>::kStageBytes;
    auto* kernel = int8_kernel<kType, kTileTokens>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "linear: shared memory"));
    const dim3 grid(static_cast<unsigned>((x.rows + kTileTokens - 1) / kTileTokens),
                    static_cast<unsigned>(parts.tiles));
    kernel<<<grid, kThreads, kBytes, context.stream>>>(parts, x);
    return check_launch("linear_int8");
}

template <DType kType>
Status launch(const Context& context, const QuantizedRows& x, const Parts& parts, int tokens) {
    // Wide tiles unpack less; narrow ones, two to a multiprocessor, leave fewer of them idle.
    const int64_t wide = (x.rows + 127) / 128 * parts.tiles;
    if (tokens == 0) tokens = wide >= 4 * context.multiprocessors ? 128 : 64;
    if (tokens == 64) return launch_tile<kType, 64>(context, x, parts);
    return launch_tile<kType, 128>(context, x, parts);
}

} // namespace

Status linear_int8(const Context& context, const QuantizedRows& x, const LinearArgs& args,
                   unsigned mask, int tokens) {
    const Parts parts = make_parts(args, mask, kTileRows);
    switch (parts.dtype) {
    case DType::kQ8_0:
        return launch<DType::kQ8_0>(context, x, parts, tokens);
    case DType::kQ4_0:
        return launch<DType::kQ4_0>(context, x, parts, tokens);
    case DType::kQ4_1:
        return launch<DType::kQ4_1>(context, x, parts, tokens);
    case DType::kQ1_0:
        return launch<DType::kQ1_0>(context, x, parts, tokens);
    case DType::kPQ2_0:
        return launch<DType::kPQ2_0>(context, x, parts, tokens);
    default:
        return fail(ErrorCode::kUnsupported, "linear_int8: weight is %s",
                    dtype_info(parts.dtype).name);
    }
}

} // namespace bonsai::cuda
