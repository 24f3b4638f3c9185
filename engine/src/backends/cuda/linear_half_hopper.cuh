// SPDX-License-Identifier: Apache-2.0
// The device's side of linear_half_hopper.cu: what is in shared memory, who brings it, who
// multiplies.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "backends/cuda/half_operands.cuh"
#include "backends/cuda/hopper.cuh"
#include "backends/cuda/linear.cuh"

namespace bonsai::cuda::half {

constexpr int kBlocksOf64 = 2; // rows of a warpgroup, times 64
constexpr int kTileRows = 128 * kBlocksOf64, kTileTokens = 128;
constexpr int kTileSlabs = kTileRows / kSlabRows;
constexpr int kSums = 64; // of a thread and block of 64 rows

struct Maps {
    CUtensorMap x[2]; // terms
    CUtensorMap w[3]; // of float weights, a part each
};

struct Work {
    Parts parts;
    const float* inverse; // of x
    float* partial;       // of cut tiles: [tile, split][256 threads][2 kSums / 4][lane][4]
    int64_t rows;         // tokens
    int stages;           // of K
    int token_tiles, tiles;
    int whole;  // tiles that are not cut
    int splits; // pieces of the others
    int units;  // of work: whole tiles, then pieces
};

// Terms of a weight: one where it is exact.
template <DType kType, bool kExact> constexpr int weight_terms() {
    return kExact && (kType == DType::kQ8_0 || kType == DType::kQ4_0 || kType == DType::kQ4_1 ||
                      kType == DType::kF32)
               ? 2
               : 1;
}

// Inputs of a stage: 128 bytes a row of floats are 64 of 16 bits.
constexpr int stage_inputs(DType type) {
    return is_float_type(type) ? 64 : 128;
}

template <DType kType, bool kExact> struct Shape {
    static constexpr bool kFloat = is_float_type(kType);
    static constexpr bool kBrain = kType == DType::kBF16 || kType == DType::kF32;
    static constexpr int kTermsX = kExact ? 2 : 1;
    static constexpr int kStageK = stage_inputs(kType);
    static constexpr int kBoxBytes = kTileTokens * 128; // 64 columns of x
    static constexpr int kTermBytes = kStageK / 64 * kBoxBytes;
    static constexpr int kXBytes = kTermsX * kTermBytes;
    static constexpr int slab_bytes() { // of a stage
        if constexpr (kFloat)
            return kSlabRows * 128;
        else
            return kStageK / SlabType<kType>::kBlock * kSlabUnitBytes<kType>;
    }
    static constexpr int kSlabBytes = slab_bytes();
    static constexpr int kWBoxes = kFloat ? (kType == DType::kF32 ? 2 : 1) : 0;
    static constexpr int kWBytes = kTileSlabs * kSlabBytes * (kFloat ? kWBoxes : 1);
    static constexpr int kCopiedBytes = kXBytes + kWBytes;
    static constexpr int kStages =
        std::min(8, (kSharedLimit - 1024) / (kCopiedBytes + kBarrierBytes));
    static constexpr int kBytes = 1024 + kStages * (kCopiedBytes + kBarrierBytes);
    // Steps of 16 columns whose products are queued together.
    static constexpr int kBatch = 2;
    static constexpr int kBatches = kStageK / 16 / kBatch; // even
};

// What a block does at a time: stages of a tile.
struct Unit {
    int tile, first, end;
    int slot; // of partial sums, -1 where the tile is whole
};

__device__ __forceinline__ Unit unit_of(const Work& work, int index) {
    if (index < work.whole) return {index, 0, work.stages, -1};
    const int slot = index - work.whole, part = slot % work.splits;
    return {work.whole + slot / work.splits, work.stages * part / work.splits,
            work.stages * (part + 1) / work.splits, slot};
}

// Stores sums of the 16 rows from `slab` of a tile; sum(j, h, e): token 8 j + e of this lane, row
// 8 h. kCount: of j from `first`.
template <int kCount, typename Sum>
__device__ __forceinline__ void store_rows(const Work& work, int tile, int slab, int first,
                                           int lane, Sum sum) {
    const int row_tile = tile / work.token_tiles;
    const Part& part = part_of(work.parts, row_tile);
    const int row = (row_tile - part.first_tile) * kTileRows + slab * kSlabRows + (lane >> 2);
    const int64_t token =
        int64_t{tile % work.token_tiles} * kTileTokens + 8 * first + 2 * (lane & 3);
    float inverse[2 * kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const float2 v = __ldg(reinterpret_cast<const float2*>(work.inverse + token + 8 * j));
        inverse[2 * j] = v.x, inverse[2 * j + 1] = v.y;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
        store_feature<2 * kCount>(
            part, row + 8 * h, work.rows, token, [](int i) { return 8 * (i >> 1) + (i & 1); },
            [&](int i) { return sum(i >> 1, h, i & 1) * inverse[i]; });
}

#if defined(BONSAI_SM90A)

// Addresses of a stage's pieces in shared memory.
template <typename S> struct Ring : StageRing<S::kStages, S::kStages * S::kCopiedBytes> {
    using Ring::StageRing::StageRing;
    __device__ __forceinline__ uint32_t x() const { return this->base + this->stage * S::kXBytes; }
    __device__ __forceinline__ uint32_t weights() const {
        return this->base + S::kStages * S::kXBytes + this->stage * S::kWBytes;
    }
};

// One warp.
template <DType kType, bool kExact>
__device__ __forceinline__ void produce(const Work& work, const Maps& maps, uint32_t base) {
    using S = Shape<kType, kExact>;
    Ring<S> ring(base);
    const int lane = threadIdx.x & 31;
    for (int index = blockIdx.x; index < work.units; index += gridDim.x) {
        const Unit unit = unit_of(work, index);
        const int row_tile = unit.tile / work.token_tiles;
        const int token = unit.tile % work.token_tiles * kTileTokens;
        const Part& part = part_of(work.parts, row_tile);
        const int row = (row_tile - part.first_tile) * kTileRows;
        const auto which = static_cast<int>(&part - work.parts.part);
        const uint8_t* slab = nullptr;
        if constexpr (!S::kFloat) {
            const int last = (part.rows - 1) / kSlabRows;
            const int64_t at = min(row / kSlabRows + lane % kTileSlabs, last);
            slab = part.weight + at * work.stages * S::kSlabBytes;
        }
        for (int s = unit.first; s < unit.end; ++s, ring.next()) {
            if (lane == 0) {
                barrier_wait(ring.empty(), ring.phase ^ 1);
                barrier_expect(ring.full(), S::kCopiedBytes);
#pragma unroll
                for (int t = 0; t < S::kTermsX; ++t)
#pragma unroll
                    for (int b = 0; b < S::kStageK / 64; ++b)
                        box_copy(ring.x() + t * S::kTermBytes + b * S::kBoxBytes, &maps.x[t],
                                 s * S::kStageK + 64 * b, token, ring.full());
#pragma unroll
                for (int b = 0; b < S::kWBoxes; ++b) // F32 counts in bytes, 128 a box
                    box_copy(ring.weights() + b * (kTileRows * 128), &maps.w[which],
                             kType == DType::kF32 ? (s * 2 + b) * 128 : s * 64, row, ring.full());
            }
            __syncwarp();
            if (!S::kFloat && lane < kTileSlabs)
                bulk_copy(ring.weights() + lane * S::kSlabBytes, slab + int64_t{s} * S::kSlabBytes,
                          S::kSlabBytes, ring.full());
        }
    }
}

template <DType kType, bool kExact> class Consumer {
  public:
    using S = Shape<kType, kExact>;
    static constexpr int kTermsW = weight_terms<kType, kExact>();

    __device__ Consumer(const Work& work, uint32_t base, int group)
        : work_(work), ring_(base), lane_(threadIdx.x & 31),
          slab_(4 * kBlocksOf64 * group + (threadIdx.x >> 5 & 3)) {}

    __device__ __forceinline__ void run() {
        for (int index = blockIdx.x; index < work_.units; index += gridDim.x) {
            const Unit unit = unit_of(work_, index);
            left_ += unit.end - unit.first;
        }
        barrier_wait(ring_.full(), ring_.phase);
        make<0>();
        for (int index = blockIdx.x; index < work_.units; index += gridDim.x) {
            const Unit unit = unit_of(work_, index);
            for (int s = unit.first; s < unit.end; ++s)
                multiply_stage(s > unit.first);
            if (unit.slot < 0)
                store(unit.tile);
            else
                store_partial(unit.slot);
        }
    }

  private:
    using Source = std::conditional_t<S::kFloat, RowSource<kType, kTileRows>,
                                      SlabSource<S::kFloat ? DType::kQ8_0 : kType, kTermsW>>;

    // Of a batch.
    struct Operands {
        uint32_t high[S::kBatch][kBlocksOf64][4] = {};
        uint32_t low[kTermsW == 2 ? S::kBatch : 1][kBlocksOf64][4] = {};
        // They are in their registers here, before products read them or until those are over.
        __device__ __forceinline__ void hold() {
#pragma unroll
            for (int b = 0; b < S::kBatch; ++b)
#pragma unroll
                for (int i = 0; i < kBlocksOf64; ++i) {
                    hold(high[b][i]);
                    if constexpr (kTermsW == 2) hold(low[b][i]);
                }
        }
        __device__ __forceinline__ static void hold(uint32_t (&r)[4]) {
            asm volatile("" : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])::"memory");
        }
    };

    __device__ __forceinline__ static void product(float (&sum)[kSums], const uint32_t (&a)[4],
                                                   uint64_t b, int add) {
        if constexpr (S::kBrain)
            wgmma_brain(sum, a, b, add);
        else
            wgmma<false>(sum, a, b, add);
    }

    // Operands of a batch of the ring's stage.
    template <int kNumber> __device__ __forceinline__ void make() {
        Operands& made = operands_[kNumber & 1];
        const uint32_t slab = ring_.weights() + slab_ * S::kSlabBytes;
#pragma unroll
        for (int b = 0; b < S::kBatch; ++b)
#pragma unroll
            for (int i = 0; i < kBlocksOf64; ++i)
                source_[i].operands(slab + 4 * i * S::kSlabBytes, lane_, kNumber * S::kBatch + b,
                                    made.high[b][i], made.low[kTermsW == 2 ? b : 0][i]);
        made.hold();
    }

    // `add`: to the sums of stages before.
    template <int kNumber> __device__ __forceinline__ void multiply_batch(uint64_t x, bool add) {
        Operands& now = operands_[kNumber & 1];
        wgmma_fence();
#pragma unroll
        for (int b = 0; b < S::kBatch; ++b) {
            const int step = kNumber * S::kBatch + b;
            const uint64_t at = x + (step / 4 * S::kBoxBytes >> 4) + 2 * (step % 4);
#pragma unroll
            for (int i = 0; i < kBlocksOf64; ++i) {
                product(sum_[i], now.high[b][i], at, add || step > 0);
                if constexpr (S::kTermsX == 2)
                    product(sum_[i], now.high[b][i], at + (S::kTermBytes >> 4), 1);
                if constexpr (kTermsW == 2) product(sum_[i], now.low[b][i], at, 1);
            }
        }
        wgmma_commit();
    }

    // Batches from kNumber on; behind each the next is made, behind the last that of the next
    // stage.
    template <int kNumber = 0>
    __device__ __forceinline__ void multiply_batches(uint64_t x, bool add) {
        multiply_batch<kNumber>(x, add);
        if constexpr (kNumber + 1 < S::kBatches) {
            make<kNumber + 1>();
            wgmma_wait<0>();
            multiply_batches<kNumber + 1>(x, add);
        } else {
            ring_.next();
            if (--left_ != 0) barrier_wait(ring_.full(), ring_.phase);
            make<0>(); // of what is there where nothing is left
            wgmma_wait<0>();
        }
    }

    __device__ __forceinline__ void multiply_stage(bool add) {
        const uint32_t empty = ring_.empty();
        multiply_batches(operand(ring_.x()), add);
#pragma unroll
        for (int i = 0; i < kBlocksOf64; ++i)
            pin(sum_[i]);
        __syncwarp();
        if (lane_ == 0) barrier_arrive(empty);
    }

    __device__ __forceinline__ void store(int tile) const {
#pragma unroll
        for (int i = 0; i < kBlocksOf64; ++i)
            store_rows<kSums / 4>(work_, tile, slab_ + 4 * i, 0, lane_,
                                  [&](int j, int h, int e) { return sum_[i][4 * j + 2 * h + e]; });
    }

    __device__ __forceinline__ void store_partial(int slot) const {
        float4* to = reinterpret_cast<float4*>(work_.partial) +
                     int64_t{slot} * (kTileRows * kTileTokens / 4) + lane_;
#pragma unroll
        for (int i = 0; i < kBlocksOf64; ++i)
#pragma unroll
            for (int j = 0; j < kSums / 4; ++j)
                to[((slab_ + 4 * i) * (kSums / 4) + j) * 32] = make_float4(
                    sum_[i][4 * j], sum_[i][4 * j + 1], sum_[i][4 * j + 2], sum_[i][4 * j + 3]);
    }

    const Work& work_;
    Ring<S> ring_;
    int lane_, slab_; // slab: the first of the tile's that this warp holds; 4 on the next
    int left_ = 0;    // stages of all the block's units that are not begun
    Source source_[kBlocksOf64];
    Operands operands_[2]; // a batch is in work while the other is made
    float sum_[kBlocksOf64][kSums];
};

#endif

} // namespace bonsai::cuda::half
