// SPDX-License-Identifier: Apache-2.0
// linear_hopper: y[M,N] = x[M,K] W[N,K]^T with int8 x and folded low-bit W, wgmma (sm_90a)
// Layout:   x: int8, a scale a token and 128, 256 or 512 inputs. W: folded (weight_layout.h). The
//           copy engine brings both to shared memory: x in rows of 128 bytes, swizzled, as the B
//           operand; W packed, unpacked in registers by a shift, a mask and `prmt`, as the A
//           operand.
// Maths:    W[n, k] = factor[n] * r[n, k / 128] * code[n, k], r * code in int8, where
//           |r - s / factor| <= 1/2: the one rounding that this path adds to linear_int8.
//           y[m, n] = factor[n] * sum over the scales of x, K ascending, of scale * float(d), d the
//           sum of products in s32: |d| <= 512 * 127 * 127 < 2^23, so its float is exact.
// Work:     a block stays on its multiprocessor and takes tiles of 128 features x kTokens tokens.
//           Two consumers (warpgroups) multiply 64 features each. While one batch of products runs,
//           the next is unpacked to other registers; the tensor cores have products queued but
//           where a scale of x ends. The consumers start apart, so that one multiplies while the
//           other converts its sums or stores, through shared memory, 32 or 64 bytes a token. One
//           lane feeds stages of K = 128 to both: two copies a stage, and the scales with the last
//           of their stages. Two products that differ in x, weights and results share a launch.
// Roofline: tensor cores: 2 M N K operations at 4096 products a cycle and multiprocessor, 768
//           cycles a stage of 128 x 192. Beside them, of each warp: unpacking 56 instructions a
//           stage; 96 conversions at half rate, 96 fused multiply-adds and 24 loads for each scale
//           of x. L2: 37 bytes a cycle and multiprocessor at that rate.
#include <utility>

#include "backends/cuda/linear_hopper.cuh"
#include "backends/cuda/tensor_map.h"

namespace bonsai::cuda {
namespace {

#if defined(BONSAI_SM90A)

// A warpgroup that multiplies. Products of a stage are numbered j: step j / kBlocks of 32 inputs,
// block j % kBlocks of 64 features.
template <typename T> class Consumer {
  public:
    static constexpr int kProducts = kGroup / 32 * T::kBlocks;
    static constexpr int kBatch = T::kBatch;  // products queued at a time
    static constexpr int kSlots = 2 * kBatch; // products unpacked
    // Stages use different slots by turns.
    static constexpr bool kAlternate = kProducts % kSlots != 0;
    static constexpr int kSums = T::kTokens / 2; // of a thread and block

    __device__ Consumer(const HopperWork& work, uint32_t base, int group)
        : work_(work), ring_(base), group_(group), lane_(threadIdx.x & 31),
          slab_(4 * T::kBlocks * group + (threadIdx.x >> 5 & 3)) {}

    __device__ __forceinline__ void run() {
        int tile = blockIdx.x;
        left_ = (work_.tiles - tile + gridDim.x - 1) / gridDim.x * work_.groups;
        lead_ = max(left_ - kLead, 0);
        if (group_ > 0) group_sync(kStart + group_, 256);
        barrier_wait(ring_.full(), ring_.phase);
        unpack<0, 0>();
        for (; tile < work_.tiles; tile += gridDim.x) {
#pragma unroll
            for (int b = 0; b < T::kBlocks; ++b)
#pragma unroll
                for (int i = 0; i < kSums; ++i)
                    sum_[b][i] = 0;
            for (int g = 0; g < work_.groups; g += work_.scale_groups) {
                const int stages = min(work_.scale_groups, work_.groups - g);
                multiply<true, 0>();
                int i = 1;
                for (; i + 1 < stages; i += 2) {
                    multiply<false, 1>();
                    multiply<false, 0>();
                }
                if (i < stages) multiply<false, 1>();
                promote();
                if (kAlternate && i == stages) { // every scale's first stage finds its own there
#pragma unroll
                    for (int j = 0; j < kBatch; ++j)
#pragma unroll
                        for (int w = 0; w < 4; ++w)
                            operands_[j][w] = operands_[(kBatch + j) % kSlots][w];
                }
            }
            store(tile);
        }
    }

  private:
    // Each consumer starts when the one before it has queued kLead stages. Barriers from kStart on.
    static constexpr int kStart = 1, kLead = T::kStages >= 8 ? 4 : 2;

    // Products kBegin to kBegin + kBatch - 1 of the ring's stage.
    template <int kBegin, int kTurn> __device__ __forceinline__ void unpack() {
        const uint32_t units = ring_.weights() + slab_ * T::kUnitBytes;
        uint32_t words[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int s = (kBegin + i) / T::kBlocks, b = (kBegin + i) % T::kBlocks;
            const uint32_t unit = units + 4 * b * T::kUnitBytes;
            asm volatile("ld.shared.u32 %0, [%1];"
                         : "=r"(words[i])
                         : "r"(unit + 128 * folded_word<T::kType>(s) + 4 * lane_));
            if (s > 0) continue;
            uint32_t pairs;
            asm volatile("ld.shared.u32 %0, [%1];"
                         : "=r"(pairs)
                         : "r"(unit + kSlabCodeBytes<T::kType> + (lane_ >> 2) * 4));
            table_[b][0] = folded_table<T::kType>(pairs, false);
            table_[b][1] = folded_table<T::kType>(pairs, true);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int s = (kBegin + i) / T::kBlocks, b = (kBegin + i) % T::kBlocks;
            uint32_t (&slot)[4] = operands_[(kTurn * kProducts + kBegin + i) % kSlots];
#pragma unroll
            for (int h = 0; h < 2; ++h)
                folded_operands<T::kType>(words[i], s, h, table_[b][0], table_[b][1], slot + 2 * h);
            pin(slot);
        }
    }

    // Queues a batch; then unpacks the next, at a stage's end that of the next stage, of the next
    // tile at this one's end.
    template <bool kFirst, int kTurn, int kBegin>
    __device__ __forceinline__ void queue(uint64_t codes) {
        constexpr int kNext = (kBegin + kBatch) % kProducts;
        wgmma_fence();
#pragma unroll
        for (int j = kBegin; j < kBegin + kBatch; ++j) {
            const int s = j / T::kBlocks;
            wgmma(sum32_[j % T::kBlocks], operands_[(kTurn * kProducts + j) % kSlots],
                  codes + 2 * s, !kFirst || s > 0);
        }
        wgmma_commit();
        if (kNext == 0) {
            ring_.next();
            if (--left_ == lead_ && group_ + 1 < T::kConsumers)
                group_arrive(kStart + group_ + 1, 256);
            if (left_ != 0) barrier_wait(ring_.full(), ring_.phase);
        }
        wgmma_wait<1>();
        if (!kFirst && kBegin == 0) release(); // the stage before is done with
        unpack<kNext, kNext == 0 ? 1 - kTurn : kTurn>();
    }

    template <bool kFirst, int kTurn> __device__ __forceinline__ void multiply() {
        now_ = ring_;
        const uint64_t codes = operand(ring_.codes());
        queue<kFirst, kTurn, 0>(codes);
        if constexpr (kBatch < kProducts) queue<kFirst, kTurn, kBatch>(codes);
        if constexpr (2 * kBatch < kProducts) queue<kFirst, kTurn, 2 * kBatch>(codes);
        if constexpr (3 * kBatch < kProducts) queue<kFirst, kTurn, 3 * kBatch>(codes);
        empty_ = now_.empty();
    }

    __device__ __forceinline__ void release() {
        __syncwarp();
        if (lane_ == 0) barrier_arrive(empty_);
    }

    // Sums of a scale of x, which came with its last stage.
    __device__ __forceinline__ void promote() {
        wgmma_wait<0>();
#pragma unroll
        for (int b = 0; b < T::kBlocks; ++b)
            pin(sum32_[b]);
        const uint32_t from = now_.scales() + 8 * (lane_ & 3);
#pragma unroll
        for (int j = 0; j < T::kTokens / 8; ++j) {
            float2 x;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(x.x), "=f"(x.y)
                         : "r"(from + 32 * j));
#pragma unroll
            for (int b = 0; b < T::kBlocks; ++b)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    sum_[b][4 * j + i] =
                        fmaf(i & 1 ? x.y : x.x, __int2float_rn(sum32_[b][4 * j + i]),
                             sum_[b][4 * j + i]);
        }
        release();
    }

    __device__ __forceinline__ void store(int tile) const {
        const TilePlace place = place_of(work_, tile);
        const HopperSide& side = work_.sides[place.side];
        const Part& part = part_of(side.parts, place.row_tile);
        const int64_t token = place.token_tile * T::kTokens;
#pragma unroll
        for (int b = 0; b < T::kBlocks; ++b) {
            const int slab = slab_ + 4 * b;
            const int n = (place.row_tile - part.first_tile) * T::kRows + slab * kSlabRows;
            if (n >= part.rows) continue;
            const auto* factors = reinterpret_cast<const float*>(
                part.weight + (n / kSlabRows + 1) * slab_bytes<T>(work_) - 4 * kSlabRows);
            const uint32_t room = ring_.room(threadIdx.x >> 5);
            const auto store_as = [&](auto how) {
                store_slab<decltype(how)::value, T::kTokens>(part, n, side.rows, token, room,
                                                             factors, sum_[b]);
            };
            if (!stores_by_quads(part, n))
                store_as(std::integral_constant<Store, Store::kSingles>());
            else if (part.accumulate)
                store_as(std::integral_constant<Store, Store::kAddedQuads>());
            else
                store_as(std::integral_constant<Store, Store::kQuads>());
        }
    }

    const HopperWork& work_;
    HopperRing<T> ring_, now_ = ring_;
    int group_, lane_, slab_; // slab: the first of the warp's in the tile
    int left_, lead_;         // stages of all the block's tiles that are not begun
    uint32_t empty_ = 0;      // barrier of the stage before
    uint32_t table_[T::kBlocks][2];
    uint32_t operands_[kSlots][4];
    int sum32_[T::kBlocks][kSums];
    float sum_[T::kBlocks][kSums];
};

#endif

template <typename T>
__global__ void __launch_bounds__(T::kThreads, 1)
    hopper_kernel(const __grid_constant__ HopperMaps maps,
                  const __grid_constant__ HopperWork work) {
#if defined(BONSAI_SM90A)
    extern __shared__ uint8_t shared[];
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
    const HopperRing<T> ring(base);
    if (threadIdx.x == 0) ring.init(4 * T::kConsumers); // warps
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == T::kConsumers) {
        registers_shrink<24>();
        if (threadIdx.x == 128 * T::kConsumers) produce<T>(work, maps, base);
    } else {
        registers_grow<T::kRegisters>();
        Consumer<T> consumer(work, base, group);
        consumer.run();
    }
#endif
}

template <typename T>
Status launch(const Context& context, const HopperProduct* products, int count) {
    HopperMaps maps;
    HopperWork work;
    work.tiles = 0;
    for (int i = 0; i < 2; ++i) {
        HopperSide& side = work.sides[i];
        side.first_tile = work.tiles;
        if (i >= count) continue;
        const QuantizedRows& x = products[i].x;
        BONSAI_TRY(make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, x.q, x.rows, x.cols, x.stride,
                                   T::kTokens, &maps.codes[i]));
        side.parts = make_parts(*products[i].args, products[i].mask, T::kRows);
        side.scale = x.scale;
        side.scale_stride = x.scale_stride;
        side.rows = x.rows;
        side.token_tiles = static_cast<int>((x.rows + T::kTokens - 1) / T::kTokens);
        work.tiles += side.parts.tiles * side.token_tiles;
        const int64_t units = x.cols / kGroup;
        for (int p = 0; p < side.parts.count; ++p) {
            const Part& part = side.parts.part[p];
            BONSAI_TRY(make_weight_map(
                part.weight, T::kUnitBytes, units, units * T::kUnitBytes + 4 * kSlabRows,
                (part.rows + kSlabRows - 1) / kSlabRows, T::kSlabs, &maps.weights[i][p]));
        }
    }
    work.groups = static_cast<int>(products[0].x.cols / kGroup);
    work.scale_groups = products[0].x.group / kGroup;
    auto* kernel = hopper_kernel<T>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes),
              "linear: shared memory"));
    const auto grid = static_cast<unsigned>(std::min(work.tiles, context.multiprocessors));
    kernel<<<grid, T::kThreads, T::kBytes, context.stream>>>(maps, work);
    return check_launch("linear_hopper");
}

// The tile that leaves the fewest multiprocessors idle: rounds of tiles times what one costs.
int best_tile(const Context& context, const HopperProduct* products, int count) {
    int best = 0;
    int64_t least = 0;
    for (int i = 0; i < kHopperTileCount; ++i) {
        const HopperTileSize& size = kHopperTiles[i];
        int64_t tiles = 0;
        for (int p = 0; p < count; ++p)
            tiles += (products[p].x.rows + size.tokens - 1) / size.tokens *
                     make_parts(*products[p].args, products[p].mask, size.features).tiles;
        const int64_t rounds = (tiles + context.multiprocessors - 1) / context.multiprocessors;
        // What a tile takes beside the products, in tokens: measured.
        const int64_t cost = rounds * (size.tokens + 120) * size.features;
        if (i == 0 || cost < least) best = i, least = cost;
    }
    return best;
}

template <DType kType, int kIndex>
using TileOf = HopperTile<kType, kHopperTiles[kIndex].consumers,
                          kHopperTiles[kIndex].features / (64 * kHopperTiles[kIndex].consumers),
                          kHopperTiles[kIndex].tokens, kHopperTiles[kIndex].batch>;

template <DType kType, int... kIndex>
Status launch_tile(const Context& context, const HopperProduct* products, int count, int tile,
                   std::integer_sequence<int, kIndex...>) {
    Status status;
    ((tile == kIndex ? void(status = launch<TileOf<kType, kIndex>>(context, products, count))
                     : void()),
     ...);
    return status;
}

} // namespace

bool linear_hopper_serves(const Context& context, DType dtype) {
#if defined(BONSAI_CUDA_HOPPER)
    return context.capability == 90 && is_low_bit(dtype);
#else
    (void)context, (void)dtype;
    return false;
#endif
}

Status linear_hopper(const Context& context, const HopperProduct* products, int count, int tile) {
    if (tile < 0) tile = best_tile(context, products, count);
    const DType dtype = make_parts(*products[0].args, products[0].mask, 1).dtype;
    const auto tiles = std::make_integer_sequence<int, kHopperTileCount>();
    if (dtype == DType::kPQ2_0)
        return launch_tile<DType::kPQ2_0>(context, products, count, tile, tiles);
    return launch_tile<DType::kQ1_0>(context, products, count, tile, tiles);
}

} // namespace bonsai::cuda
