// SPDX-License-Identifier: Apache-2.0
// linear_hopper: y[M,N] = x[M,K] W[N,K]^T with int8 x and low-bit W (groups of 128), wgmma (sm_90a)
// Layout:   as linear_int8. The copy engine brings both to shared memory: x in rows of 128 bytes,
//           swizzled, as the B operand; W packed, unpacked in registers, as the A operand.
// Maths:    per group of 128: d = sum of codes in s32, begun at 0x4B400000, whose bits read as the
//           float 12582912 + d (|d| < 2^21: 64 * 128 * 127 for codes that stand 64 times too
//           large); part = (that - 12582912) * w_scale by one fused multiply-add, exact before its
//           rounding as 12582912 * w_scale has 13 significant bits; y += x_scale * part, K
//           ascending.
// Work:     a block stays on its multiprocessor and takes tiles of 128 features x kTokens tokens.
//           Two warpgroups multiply 64 features each, and while one scales its sums the tensor
//           cores work for the other; a third feeds stages of K = 128 to both.
// Roofline: tensor cores: 2 M N K operations at 4096 products a cycle and multiprocessor. Beside
//           them a sum costs 3 issue slots a group (start, two fused multiply-adds),
//           75 % of the time that the products take; unpacking 28 for 64 weights of a lane.
#include <cuda.h>

#include <algorithm>

#include "backends/cuda/linear.cuh"
#include "backends/cuda/tensor_map.h"
#include "backends/cuda/wgmma_int8.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kTileRows = 128, kConsumers = 2, kThreads = 128 * (kConsumers + 1);
constexpr int kTileSlabs = kTileRows / kSlabRows;
constexpr int kSharedLimit = 227 * 1024;

struct Work {
    Parts parts;
    const float* scale; // of x
    int64_t scale_stride;
    int scale_groups; // of 128 that share a row of scales
    int64_t rows;     // tokens
    int groups;       // K / 128
    int token_tiles;
    int tiles;
};

template <DType kType, int kTokens> struct Shape {
    static constexpr int kCodeBytes = kTokens * kGroup, kScaleBytes = kTokens * 4;
    static constexpr int kUnitBytes = kSlabUnitBytes<kType>;
    static constexpr int kCopiedBytes = kCodeBytes + kScaleBytes + kTileSlabs * kUnitBytes;
    static constexpr int kStageBytes = kCopiedBytes + 16; // and two barriers
    static constexpr int kStages = std::min(8, (kSharedLimit - 1024) / kStageBytes);
    static constexpr int kBytes = 1024 + kStages * kStageBytes;
};

#if defined(BONSAI_SM90A)

// Addresses of a stage's pieces in shared memory, and where the ring stands.
template <typename S> struct Ring {
    uint32_t base;
    int stage = 0;
    uint32_t phase = 0;
    __device__ explicit Ring(uint32_t start) : base(start) {}
    __device__ __forceinline__ uint32_t codes() const { return base + stage * S::kCodeBytes; }
    __device__ __forceinline__ uint32_t weights() const {
        return base + S::kStages * S::kCodeBytes + stage * (kTileSlabs * S::kUnitBytes);
    }
    __device__ __forceinline__ uint32_t scales() const {
        return base + S::kStages * (S::kCodeBytes + kTileSlabs * S::kUnitBytes) +
               stage * S::kScaleBytes;
    }
    __device__ __forceinline__ uint32_t full(int s) const {
        return base + S::kStages * S::kCopiedBytes + 16 * s;
    }
    __device__ __forceinline__ uint32_t full() const { return full(stage); }
    __device__ __forceinline__ uint32_t empty() const { return full(stage) + 8; }
    __device__ __forceinline__ void next() {
        if (++stage == S::kStages) stage = 0, phase ^= 1;
    }
};

// The slab that holds rows 16 i to 16 i + 15 of a tile of features.
template <DType kType>
__device__ __forceinline__ const uint8_t* slab_of(const Work& work, int row_tile, int i) {
    const Part& part = part_of(work.parts, row_tile);
    const int slab =
        min((row_tile - part.first_tile) * kTileSlabs + i, (part.rows - 1) / kSlabRows);
    return part.weight + static_cast<int64_t>(slab) * work.groups * kSlabUnitBytes<kType>;
}

// One warp.
template <DType kType, int kTokens>
__device__ __forceinline__ void produce(const Work& work, const CUtensorMap& map, uint32_t base) {
    using S = Shape<kType, kTokens>;
    Ring<S> ring(base);
    const int lane = threadIdx.x & 31;
    for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        const int token = tile % work.token_tiles * kTokens;
        const float* scale = work.scale + token;
        const uint8_t* unit = slab_of<kType>(work, tile / work.token_tiles, lane % kTileSlabs);
        for (int g = 0; g < work.groups; ++g, ring.next()) {
            if (lane == 0) {
                barrier_wait(ring.empty(), ring.phase ^ 1);
                barrier_expect(ring.full(), S::kCopiedBytes);
                box_copy(ring.codes(), &map, g * kGroup, token, ring.full());
                bulk_copy(ring.scales(), scale, S::kScaleBytes, ring.full());
            }
            __syncwarp();
            if (lane < kTileSlabs)
                bulk_copy(ring.weights() + lane * S::kUnitBytes, unit, S::kUnitBytes, ring.full());
            unit += S::kUnitBytes;
            if ((g + 1) % work.scale_groups == 0) scale += work.scale_stride;
        }
    }
}

// What a thread of a consumer holds of its two rows.
template <DType kType, int kTokens> class Consumer {
  public:
    using S = Shape<kType, kTokens>;
    static constexpr int kSteps = kGroup / 32;
    static constexpr int kSums = kTokens / 2; // of a thread

    __device__ Consumer(const Work& work, uint32_t base, int group)
        : work_(work), ring_(base), group_(group), lane_(threadIdx.x & 31),
          slab_(4 * group + (threadIdx.x >> 5 & 3)) {}

    __device__ __forceinline__ void run() {
        if (group_ == 1) group_arrive(kTurn, 128 * kConsumers); // the other one begins
        int tile = blockIdx.x;
        left_ = (work_.tiles - tile + gridDim.x - 1) / gridDim.x * work_.groups;
        fetch();
        unpack(operands_[0], scales_[0]);
        for (; tile < work_.tiles; tile += gridDim.x) {
#pragma unroll
            for (int i = 0; i < kSums; ++i)
                sum_[i] = 0;
            if constexpr (kAhead) {
                for (int g = 0; g < work_.groups; g += 2) {
                    multiply_group<0>();
                    if (g + 1 < work_.groups) multiply_group<1>();
                }
                if ((work_.groups & 1) != 0) { // every tile begins with the first of the two
#pragma unroll
                    for (int i = 0; i < 4 * kSteps; ++i)
                        operands_[0][i] = operands_[kAhead][i];
                    scales_[0] = scales_[kAhead];
                }
            } else {
                for (int g = 0; g < work_.groups; ++g)
                    multiply_group<0>();
            }
            store(tile);
        }
        if (group_ == 0) group_sync(kTurn, 128 * kConsumers); // no turn is left over
    }

  private:
    // The warpgroups take turns in giving the tensor cores a group's products, so that they never
    // scale their sums at the same time. kTurn + i is the barrier of warpgroup i.
    static constexpr int kTurn = 1;

    // Operands of the next group are unpacked while this one's are multiplied, where registers
    // allow.
    static constexpr bool kAhead = kTokens <= 144;

    // The packed weights of the ring's stage, once they are there.
    __device__ __forceinline__ void fetch() {
        barrier_wait(ring_.full(), ring_.phase);
        load_shared_unit<kType>(ring_.weights() + slab_ * S::kUnitBytes, lane_, unit_);
    }
    __device__ __forceinline__ void unpack(uint32_t (&operands)[4 * kSteps],
                                           uint32_t& scales) const {
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                operands[4 * s + i] = operand_word<kType>(unit_.codes, s, i);
        scales = unit_.scales;
    }

    // One group with operands kNow; gets those of the next, of the next tile at this one's end.
    template <int kNow> __device__ __forceinline__ void multiply_group() {
        int d[kSums];
#pragma unroll
        for (int i = 0; i < kSums; ++i)
            d[i] = 0x4B400000;
        pin(d);
        group_sync(kTurn + group_, 128 * kConsumers);
        wgmma_fence();
        const uint64_t codes = operand(ring_.codes());
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
            wgmma(d, operands_[kNow] + 4 * s, codes + 2 * s, 1);
        wgmma_commit();
        group_arrive(kTurn + (group_ ^ 1), 128 * kConsumers);
        const Ring<S> now = ring_;
        ring_.next();
        if (--left_ != 0) fetch();
        if constexpr (kAhead) {
            unpack(operands_[kNow ^ kAhead], scales_[kNow ^ kAhead]);
            pin(operands_[kNow ^ kAhead]);
        }
        wgmma_wait<0>();
        pin(d);
        promote(now.scales(), d, scales_[kNow]);
        __syncwarp();
        if (lane_ == 0) barrier_arrive(now.empty());
        if constexpr (!kAhead) unpack(operands_[0], scales_[0]);
    }

    __device__ __forceinline__ void promote(uint32_t from, const int (&d)[kSums], uint32_t scales) {
        float2 w = scale_pair(scales);
        w.x *= 1.0f / SlabType<kType>::kFactor;
        w.y *= 1.0f / SlabType<kType>::kFactor;
        const float2 start = make_float2(-12582912.0f * w.x, -12582912.0f * w.y);
        from += 8 * (lane_ & 3);
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
            float2 x;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(x.x), "=f"(x.y)
                         : "r"(from + 32 * j));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float part = fmaf(__int_as_float(d[4 * j + i]), i < 2 ? w.x : w.y,
                                        i < 2 ? start.x : start.y);
                sum_[4 * j + i] = fmaf(i & 1 ? x.y : x.x, part, sum_[4 * j + i]);
            }
        }
    }

    __device__ __forceinline__ void store(int tile) const {
        const int row_tile = tile / work_.token_tiles;
        const Part& part = part_of(work_.parts, row_tile);
        const int first = (row_tile - part.first_tile) * kTileRows;
        const int64_t token = tile % work_.token_tiles * kTokens + 2 * (lane_ & 3);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int n = first + slab_ * kSlabRows + 8 * h + (lane_ >> 2);
            store_feature<kTokens / 4>(
                part, n, work_.rows, token, [](int i) { return 8 * (i >> 1) + (i & 1); },
                [&](int i) { return sum_[4 * (i >> 1) + 2 * h + (i & 1)]; });
        }
    }

    const Work& work_;
    Ring<S> ring_;
    int group_, lane_, slab_; // slab: of the tile's eight
    int left_;                // groups of all the block's tiles that are not begun
    LaneUnit<kType> unit_ = {};
    uint32_t operands_[1 + kAhead][4 * kSteps];
    uint32_t scales_[1 + kAhead];
    float sum_[kSums];
};

#endif

template <DType kType, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Work work) {
#if defined(BONSAI_SM90A)
    using S = Shape<kType, kTokens>;
    extern __shared__ uint8_t shared[];
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
    const Ring<S> ring(base);
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) {
            barrier_init(ring.full(s), 1);
            barrier_init(ring.full(s) + 8, 4 * kConsumers);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == kConsumers) {
        registers_shrink<24>();
        if (threadIdx.x < 128 * kConsumers + 32) produce<kType, kTokens>(work, map, base);
    } else {
        registers_grow<240>();
        Consumer<kType, kTokens> consumer(work, base, group);
        consumer.run();
    }
#endif
}

template <DType kType, int kTokens>
Status launch(const Context& context, const QuantizedRows& x, const Parts& parts) {
    using S = Shape<kType, kTokens>;
    CUtensorMap map;
    BONSAI_TRY(make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, x.q, x.rows, x.cols, x.stride,
                               kTokens, &map));
    Work work;
    work.parts = parts;
    work.scale = x.scale;
    work.scale_stride = x.scale_stride;
    work.scale_groups = x.group / kGroup;
    work.rows = x.rows;
    work.groups = static_cast<int>(x.cols / kGroup);
    work.token_tiles = static_cast<int>((x.rows + kTokens - 1) / kTokens);
    work.tiles = parts.tiles * work.token_tiles;
    auto* kernel = hopper_kernel<kType, kTokens>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes),
              "linear: shared memory"));
    const auto grid = static_cast<unsigned>(std::min(work.tiles, context.multiprocessors));
    kernel<<<grid, kThreads, S::kBytes, context.stream>>>(map, work);
    return check_launch("linear_hopper");
}

// The tile width that leaves the fewest multiprocessors idle: rounds of tiles times their width.
int best_width(const Context& context, int64_t rows, int row_tiles) {
    int best = 0;
    int64_t least = 0;
    for (const int width : kHopperWidths) {
        const int64_t tiles = (rows + width - 1) / width * row_tiles;
        const int64_t rounds = (tiles + context.multiprocessors - 1) / context.multiprocessors;
        // A tile's end costs about as much as 32 tokens more.
        const int64_t cost = rounds * (width + 32);
        if (best == 0 || cost < least) best = width, least = cost;
    }
    return best;
}

template <DType kType>
Status launch_width(const Context& context, const QuantizedRows& x, const Parts& parts,
                    int tokens) {
    switch (tokens) {
    case 128:
        return launch<kType, 128>(context, x, parts);
    case 144:
        return launch<kType, 144>(context, x, parts);
    case 160:
        return launch<kType, 160>(context, x, parts);
    default:
        return launch<kType, 192>(context, x, parts);
    }
}

} // namespace

bool linear_hopper_serves(const Context& context, DType dtype) {
#if defined(BONSAI_CUDA_HOPPER)
    return context.capability == 90 && (dtype == DType::kPQ2_0 || dtype == DType::kQ1_0);
#else
    (void)context, (void)dtype;
    return false;
#endif
}

Status linear_hopper(const Context& context, const QuantizedRows& x, const LinearArgs& args,
                     unsigned mask, int tokens) {
    const Parts parts = make_parts(args, mask, kTileRows);
    if (tokens == 0) tokens = best_width(context, x.rows, parts.tiles);
    if (parts.dtype == DType::kPQ2_0) return launch_width<DType::kPQ2_0>(context, x, parts, tokens);
    return launch_width<DType::kQ1_0>(context, x, parts, tokens);
}

} // namespace bonsai::cuda
