// SPDX-License-Identifier: Apache-2.0
// Device code of linear_hopper: what a tile is, its ring of stages in shared memory, the producer.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "backends/cuda/linear.cuh"
#include "backends/cuda/wgmma_int8.cuh"

namespace bonsai::cuda {

// Shared memory in which a warp turns 16 features x 16 tokens of results; rows of 20 floats, so
// that no two lanes of its stores share a bank.
constexpr int kRoomStride = 20, kRoomBytes = 16 * kRoomStride * 4;

// One of the products that a launch computes: its own x, weights and results.
struct HopperSide {
    Parts parts;
    const float* scale; // of x
    int64_t scale_stride;
    int64_t rows; // tokens
    int token_tiles;
    int first_tile; // of the launch's
};
struct HopperWork {
    HopperSide sides[2]; // the second begins behind the last tile where there is but one
    int groups;          // K / 128
    int scale_groups;    // groups that share a scale of x
    int tiles;
};
struct HopperMaps {
    CUtensorMap codes[2];      // of the sides' x
    CUtensorMap weights[2][3]; // of their parts
};

// A tile: 64 kBlocks kConsumers features x kTokens tokens.
template <DType kType_, int kConsumers_, int kBlocks_, int kTokens_, int kBatch_>
struct HopperTile {
    static constexpr DType kType = kType_;
    static constexpr int kConsumers = kConsumers_, kBlocks = kBlocks_, kTokens = kTokens_;
    static constexpr int kBatch = kBatch_; // products that a consumer queues at a time
    static constexpr int kThreads = 128 * (kConsumers + 1);
    static constexpr int kRegisters = kConsumers == 2 ? 240 : kConsumers == 3 ? 160 : 120;
    static constexpr int kSlabs = 4 * kBlocks * kConsumers, kRows = kSlabs * kSlabRows;
    static constexpr int kCodeBytes = kTokens * kGroup, kScaleBytes = kTokens * 4;
    static constexpr int kUnitBytes = kSlabUnitBytes<kType>;
    static constexpr int kStageBytes =
        kCodeBytes + kScaleBytes + kSlabs * kUnitBytes + kBarrierBytes;
    static constexpr int kRooms = 4 * kConsumers * kRoomBytes;
    static constexpr int kStages = std::min(16, (kSharedLimit - 1024 - kRooms) / kStageBytes);
    static constexpr int kBytes = 1024 + kStages * kStageBytes + kRooms;
};

#if defined(BONSAI_SM90A)

// Addresses of a stage's pieces in shared memory.
template <typename T>
struct HopperRing : StageRing<T::kStages, T::kStages*(T::kStageBytes - kBarrierBytes)> {
    using HopperRing::StageRing::StageRing;
    __device__ __forceinline__ uint32_t codes() const {
        return this->base + this->stage * T::kCodeBytes;
    }
    __device__ __forceinline__ uint32_t weights() const {
        return this->base + T::kStages * T::kCodeBytes + this->stage * (T::kSlabs * T::kUnitBytes);
    }
    __device__ __forceinline__ uint32_t scales() const {
        return this->base + T::kStages * (T::kCodeBytes + T::kSlabs * T::kUnitBytes) +
               this->stage * T::kScaleBytes;
    }
    // The room of a consumers' warp.
    __device__ __forceinline__ uint32_t room(int warp) const {
        return this->base + T::kStages * T::kStageBytes + warp * kRoomBytes;
    }
};

// A tile of the launch: which side's, which of the side's tiles of features and of tokens.
struct TilePlace {
    int side, row_tile, token_tile;
};
__device__ __forceinline__ TilePlace place_of(const HopperWork& work, int tile) {
    const int side = tile >= work.sides[1].first_tile ? 1 : 0;
    tile -= work.sides[side].first_tile;
    const int row_tile = tile / work.sides[side].token_tiles;
    return {side, row_tile, tile - row_tile * work.sides[side].token_tiles};
}

// Bytes from one slab of a weight to the next: its units, and the factors of its rows.
template <typename T> __device__ __forceinline__ int64_t slab_bytes(const HopperWork& work) {
    return static_cast<int64_t>(work.groups) * T::kUnitBytes + 4 * kSlabRows;
}

// One warp's lane. The scales of x come with the last stage that they hold for.
template <typename T>
__device__ __forceinline__ void produce(const HopperWork& work, const HopperMaps& maps,
                                        uint32_t base) {
    HopperRing<T> ring(base);
    for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        const TilePlace place = place_of(work, tile);
        const HopperSide& side = work.sides[place.side];
        const Part& part = part_of(side.parts, place.row_tile);
        const CUtensorMap* weights =
            &maps.weights[place.side][static_cast<int>(&part - side.parts.part)];
        const int token = place.token_tile * T::kTokens;
        const int slab = (place.row_tile - part.first_tile) * T::kSlabs;
        const float* scale = side.scale + token;
        int left = work.scale_groups;
        for (int g = 0; g < work.groups; ++g, ring.next()) {
            const bool last = --left == 0 || g + 1 == work.groups;
            barrier_wait(ring.empty(), ring.phase ^ 1);
            barrier_expect(ring.full(),
                           T::kCodeBytes + T::kSlabs * T::kUnitBytes + (last ? T::kScaleBytes : 0));
            box_copy(ring.codes(), &maps.codes[place.side], g * kGroup, token, ring.full());
            box_copy(ring.weights(), weights, 0, g, slab, ring.full());
            if (!last) continue;
            bulk_copy(ring.scales(), scale, T::kScaleBytes, ring.full());
            scale += side.scale_stride;
            left = work.scale_groups;
        }
    }
}

// Four floats as f16; what is finite stays finite.
__device__ __forceinline__ uint2 half_quad(float4 y) {
    const __half2 low = __floats2half2_rn(y.x, y.y), high = __floats2half2_rn(y.z, y.w);
    uint2 bits = {*reinterpret_cast<const uint32_t*>(&low),
                  *reinterpret_cast<const uint32_t*>(&high)};
    const auto largest = [](uint32_t v) { return (v & 0x7FFF7FFFu) + 0x04000400u; };
    if (((largest(bits.x) | largest(bits.y)) & 0x80008000u) != 0) { // an exponent of ones
        const __half2 a = __halves2half2(half_of(y.x), half_of(y.y)),
                      b = __halves2half2(half_of(y.z), half_of(y.w));
        bits = {*reinterpret_cast<const uint32_t*>(&a), *reinterpret_cast<const uint32_t*>(&b)};
    }
    return bits;
}

// Whether 16 features from n on may be stored in pieces of four.
__device__ __forceinline__ bool stores_by_quads(const Part& part, int n) {
    const uintptr_t piece = part.half ? 8 : 16;
    return n + kSlabRows <= part.rows && (part.out_stride & 3) == 0 &&
           reinterpret_cast<uintptr_t>(part.out) % piece == 0;
}

// 16 features x 16 tokens of a warp, as wgmma leaves them, into its room. `to`: of the lane's
// first.
__device__ __forceinline__ void put_sums(uint32_t to, const float* sums) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i)
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(
                         to + ((i >> 2) * 8 + (i & 1)) * (4 * kRoomStride) + (i & 2) * 16),
                     "f"(sums[i])
                     : "memory");
    __syncwarp();
}
__device__ __forceinline__ float4 get_quad(uint32_t from) {
    float4 y;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(y.x), "=f"(y.y), "=f"(y.z), "=f"(y.w)
                 : "r"(from));
    return y;
}

// The first `features` of four of a token, one by one, added or not. `at`: in out or half.
__device__ __forceinline__ void store_singles(const Part& part, float* out, __half* half, int at,
                                              int features, float4 y, float4 gate) {
    const float values[4] = {y.x, y.y, y.z, y.w}, gates[4] = {gate.x, gate.y, gate.z, gate.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        if (c >= features) continue;
        float& to = out[at + c];
        if (part.half)
            half[at + c] = half_of(values[c]);
        else
            to = part.accumulate ? fmaf(gates[c], values[c], to) : values[c];
    }
}

// Outputs of one warp: the slab of features n to n + 15, tokens from `token` on. sums: as wgmma
// leaves them (hopper.cuh). They cross the warp's `room` in shared memory 16 tokens at a time, so
// that each lane stores four features of a token and four lanes the slab's. kSingles: features one
// by one, added or not, as far as there are any.
enum class Store { kQuads, kAddedQuads, kSingles };

template <Store kStore, int kTokens>
__device__ __forceinline__ void store_slab(const Part& part, int n, int64_t rows, int64_t token,
                                           uint32_t room, const float* factors,
                                           const float (&sum)[kTokens / 2]) {
    const int lane = threadIdx.x & 31, quad = 4 * (lane & 3);
    token += lane >> 2;
    const auto left = static_cast<int>(max(min(rows - token, int64_t{kTokens}), int64_t{0}));
    const auto stride = static_cast<int>(part.out_stride);
    const int64_t begin = token * part.out_stride + n + quad;
    float* out = static_cast<float*>(part.out) + begin;
    __half* half = static_cast<__half*>(part.out) + begin;
    constexpr int kBatch = 8; // loads under way at a time
    float4 before[kBatch];
    const int features = min(part.rows - n - quad, 4);
    const auto four = [&](const float* from, float otherwise) {
        const auto one = [&](int i) { return from && i < features ? __ldg(from + i) : otherwise; };
        return make_float4(one(0), one(1), one(2), one(3));
    };
    const float4 factor = four(factors + quad, 0);
    const float4 bias = four(part.bias ? part.bias + n + quad : nullptr, 0);
    const float4 gate = four(part.gate ? part.gate + n + quad : nullptr, 1);
    const uint32_t put = room + 8 * (lane & 3) * kRoomStride + (lane & ~3); // bytes
    const uint32_t get = room + (lane >> 2) * (4 * kRoomStride) + 4 * quad;
#pragma unroll
    for (int j = 0; j < kTokens / 8; j += 2) {
        if (kStore == Store::kAddedQuads && j % kBatch == 0) {
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (j + i < kTokens / 8 && 8 * (j + i) < left)
                    before[i] = *reinterpret_cast<const float4*>(out + 8 * (j + i) * stride);
        }
        put_sums(put, sum + 4 * j);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float4 y = get_quad(get + 8 * i * (4 * kRoomStride));
            y = make_float4(fmaf(y.x, factor.x, bias.x), fmaf(y.y, factor.y, bias.y),
                            fmaf(y.z, factor.z, bias.z), fmaf(y.w, factor.w, bias.w));
            const int at = 8 * (j + i);
            if (at >= left) continue;
            if constexpr (kStore == Store::kSingles) {
                store_singles(part, out, half, at * stride, features, y, gate);
            } else if constexpr (kStore == Store::kAddedQuads) {
                const float4 old = before[(j + i) % kBatch];
                *reinterpret_cast<float4*>(out + at * stride) =
                    make_float4(fmaf(gate.x, y.x, old.x), fmaf(gate.y, y.y, old.y),
                                fmaf(gate.z, y.z, old.z), fmaf(gate.w, y.w, old.w));
            } else if (part.half) {
                *reinterpret_cast<uint2*>(half + at * stride) = half_quad(y);
            } else {
                *reinterpret_cast<float4*>(out + at * stride) = y;
            }
        }
    }
}

#endif

} // namespace bonsai::cuda
