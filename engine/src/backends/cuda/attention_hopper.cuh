// SPDX-License-Identifier: Apache-2.0
// The kernel of attention_hopper.
#pragma once

#include <cuda.h>

#include "backends/cuda/attention_hopper_ends.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kThreads = 384;
constexpr int kStages = 2;

struct Maps {
    CUtensorMap q, k, v;
};

enum Barrier { kFullQ, kFullK, kFullV, kEmptyQ, kEmptyK, kEmptyV, kBarrierKinds };

template <int kKeys> struct Shared {
    static constexpr int kTile = kKeys * kDim * 2; // bytes of k or v
    static constexpr int kQTile = kQueries * kDim * 2;
    static constexpr int kQ = 0; // [kStages][2 warpgroups][2][64 rows][128 bytes]
    static constexpr int kK = kStages * kQTile;
    static constexpr int kV = kK + kStages * kTile;
    static constexpr int kBarriers = kV + kStages * kTile;
    static constexpr int kBytes =
        kBarriers + kBarrierKinds * kStages * 8 + 1024; // begin rounded up
    // `what` of a stage of its ring.
    static __device__ __forceinline__ uint32_t barrier(int what, int stage) {
        return kBarriers + (what * kStages + stage) * 8;
    }
};

#if defined(BONSAI_SM90A)

// What one thread copies: tiles of keys and values in turn as stages become free.
struct Source {
    const Maps* maps; // null: tiles lie ready in memory
    const __half *k, *v;
    int column; // of the head in the maps' matrices
};

// A tile that lies ready, or two boxes of 64 dimensions.
template <int kKeys>
__device__ __forceinline__ void copy_tile(const CUtensorMap* map, const __half* ready, int column,
                                          int block, uint32_t to, uint32_t full) {
    constexpr int kBytes = Shared<kKeys>::kTile;
    barrier_expect(full, kBytes);
    if (map == nullptr) {
        bulk_copy(to, ready + int64_t{block} * (kKeys * kDim), kBytes, full);
    } else {
        box_copy(to, map, column, block * kKeys, full);
        box_copy(to + kBytes / 2, map, column + 64, block * kKeys, full);
    }
}

// The parity with which the n-th use of a ring waits for what is full; what is empty has the other,
// as the first round finds all stages so.
__device__ __forceinline__ uint32_t parity_of(int n) {
    return n / kStages % 2;
}

// Tiles of keys and values, the first of them the n-th of the ring.
template <int kKeys>
__device__ __forceinline__ void produce(const Source& from, uint32_t base, const Share& share,
                                        int n) {
    using S = Shared<kKeys>;
    for (int block = 0; block < share.blocks; ++block, ++n) {
        const int stage = n % kStages;
        barrier_wait(base + S::barrier(kEmptyK, stage), parity_of(n) ^ 1);
        copy_tile<kKeys>(from.maps ? &from.maps->k : nullptr, from.k, from.column,
                         share.first_block + block, base + S::kK + stage * S::kTile,
                         base + S::barrier(kFullK, stage));
        barrier_wait(base + S::barrier(kEmptyV, stage), parity_of(n) ^ 1);
        copy_tile<kKeys>(from.maps ? &from.maps->v : nullptr, from.v, from.column,
                         share.first_block + block, base + S::kV + stage * S::kTile,
                         base + S::barrier(kFullV, stage));
    }
}

// All queries of the block's turn-th share through the tensor map.
template <int kKeys>
__device__ __forceinline__ void copy_queries(const CUtensorMap& map, uint32_t base, int turn,
                                             int first_row, int column) {
    using S = Shared<kKeys>;
    const int stage = turn % kStages;
    const uint32_t full = base + S::barrier(kFullQ, stage);
    barrier_wait(base + S::barrier(kEmptyQ, stage), parity_of(turn) ^ 1);
    barrier_expect(full, S::kQTile);
    for (int i = 0; i < 4; ++i)
        box_copy(base + S::kQ + stage * S::kQTile + i * 8192, &map, column + i % 2 * 64,
                 first_row + i / 2 * 64, full);
}

// The warpgroup's 64 queries, rounded, into shared memory.
__device__ __forceinline__ void store_queries(const Flash& f, uint32_t to, int first_row,
                                              int head) {
    for (int i = static_cast<int>(threadIdx.x) % 128; i < 64 * (kDim / 8); i += 128) {
        const int row = i / (kDim / 8), piece = i % (kDim / 8);
        float x[8] = {};
        if (first_row + row < f.queries && piece * 8 < f.head_dim) {
            const float* q = f.q + int64_t{first_row + row} * f.q_stride +
                             int64_t{head} * f.head_dim + piece * 8;
            if (f.aligned) {
                const float4 low = *reinterpret_cast<const float4*>(q);
                const float4 high = *reinterpret_cast<const float4*>(q + 4);
                x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
                x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
            } else {
                for (int j = 0; j < 8; ++j)
                    x[j] = q[j];
            }
        }
        uint32_t y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            y[j] = pack_clamped(f.sign_q * x[2 * j], f.sign_q * x[2 * j + 1]);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(
                         to + piece / 8 * 8192 + row * 128 + ((piece % 8 ^ row % 8) << 4)),
                     "r"(y[0]), "r"(y[1]), "r"(y[2]), "r"(y[3])
                     : "memory");
    }
}

// Queues s = q k^T.
template <int kKeys>
__device__ __forceinline__ void query_keys(uint32_t q, uint32_t k, float (&s)[kKeys / 2]) {
    const uint64_t a = operand(q), b = operand(k);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
        wgmma(s, a + i / 4 * (8192 >> 4) + i % 4 * 2, b + i / 4 * (kKeys * 128 >> 4) + i % 4 * 2,
              i > 0);
    wgmma_commit();
}

// Queues out += p v. kRows: v lies as [2][kKeys][64 dimensions], else transposed.
template <int kKeys, bool kRows>
__device__ __forceinline__ void weigh_values(const uint32_t (&p)[kKeys / 16][4], uint32_t v,
                                             float (&out)[kDim / 2]) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
        if constexpr (kRows)
            wgmma<true>(out, p[i], operand_columns(v, kKeys * 128) + i * (16 * 128 >> 4), 1);
        else
            wgmma<false>(out, p[i], operand(v) + i / 4 * (kDim * 128 >> 4) + i % 4 * 2, 1);
    }
    wgmma_commit();
}

// Logits to weights; moves the running maximum and gives the factor of what was summed before.
template <int kKeys>
__device__ __forceinline__ void soften(const Flash& f, int row, int first_key, bool mask,
                                       float (&s)[kKeys / 2], float (&maximum)[2],
                                       float (&total)[2], float (&fade)[2]) {
    if (mask) {
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
            const int key = first_key + i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
            if (key >= f.keys || (f.causal && key > row + i % 4 / 2 * 8)) s[i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = maximum[r];
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i)
            top = fmaxf(top, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        fade[r] = exp2_approximate((maximum[r] - top) * f.scale);
        maximum[r] = top;
        const float offset = -top * f.scale;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i) {
            float& x = s[i / 2 * 4 + 2 * r + i % 2];
            x = exp2_approximate(fmaf(x, f.scale, offset));
            sum += x;
        }
        total[r] = total[r] * fade[r] + sum;
    }
}

template <int kKeys>
__device__ __forceinline__ void pack_weights_of(const float (&s)[kKeys / 2],
                                                uint32_t (&p)[kKeys / 16][4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            p[i][j] = pack_half(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
}

// The warpgroup's queries, which it stores itself where no tensor map brings them; returns where
// they lie.
template <int kKeys, bool kDirect>
__device__ __forceinline__ uint32_t take_queries(const Flash& f, uint32_t base, int group,
                                                 const Share& share, int turn) {
    using S = Shared<kKeys>;
    const uint32_t q = base + S::kQ + turn % kStages * S::kQTile + group * 16384;
    if constexpr (kDirect) {
        barrier_wait(base + S::barrier(kFullQ, turn % kStages), parity_of(turn));
    } else {
        store_queries(f, q, share.first_row + group * 64, share.head);
        async_fence();
        group_sync(1 + group, 128);
    }
    return q;
}

// A warpgroup, `group` 0 or 1, in its block's turn-th share, whose keys begin as the n-th tile of
// the ring.
template <int kKeys, bool kDirect, Result kResult>
__device__ __forceinline__ void consume(const Flash& f, uint32_t base, int group,
                                        const Share& share, int turn, int n) {
    using S = Shared<kKeys>;
    const int lane = static_cast<int>(threadIdx.x) % 128;
    const int first_row = share.first_row + group * 64;
    const int row = first_row + lane / 32 * 16 + lane % 32 / 4;
    const uint32_t q = take_queries<kKeys, kDirect>(f, base, group, share, turn);
    float s[kKeys / 2], out[kDim / 2] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {}, fade[2];
    uint32_t p[kKeys / 16][4];
    const auto weights = [&](int block) {
        const int first_key = (share.first_block + block) * kKeys, end = first_key + kKeys;
        const bool mask = end > f.keys || (f.causal && end > first_row + 1);
        soften<kKeys>(f, row, first_key, mask, s, maximum, total, fade);
    };
    barrier_wait(base + S::barrier(kFullK, n % kStages), parity_of(n));
    query_keys<kKeys>(q, base + S::kK + n % kStages * S::kTile, s);
    wgmma_wait<0>();
    pin(s);
    if (lane == 0) barrier_arrive(base + S::barrier(kEmptyK, n % kStages));
    weights(0);
    pack_weights_of<kKeys>(s, p);
    for (int block = 1; block < share.blocks; ++block, ++n) {
        const int stage = (n + 1) % kStages, last = n % kStages;
        barrier_wait(base + S::barrier(kFullK, stage), parity_of(n + 1));
        query_keys<kKeys>(q, base + S::kK + stage * S::kTile, s);
        barrier_wait(base + S::barrier(kFullV, last), parity_of(n));
        weigh_values<kKeys, kDirect>(p, base + S::kV + last * S::kTile, out);
        wgmma_wait<1>();
        pin(s);
        if (lane == 0) barrier_arrive(base + S::barrier(kEmptyK, stage));
        weights(block);
        wgmma_wait<0>();
        pin(out);
        if (lane == 0) barrier_arrive(base + S::barrier(kEmptyV, last));
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i)
            out[i] *= fade[i % 4 / 2];
        pack_weights_of<kKeys>(s, p);
    }
    const int last = n % kStages;
    barrier_wait(base + S::barrier(kFullV, last), parity_of(n));
    weigh_values<kKeys, kDirect>(p, base + S::kV + last * S::kTile, out);
    wgmma_wait<0>();
    pin(out);
    if (lane == 0) barrier_arrive(base + S::barrier(kEmptyV, last));
    store<kResult>(f, share, group, q, maximum, total, out);
    if constexpr (kDirect) { // the copy engine may write where `store` did
        async_fence();
        group_sync(1 + group, 128);
        if (lane == 0) barrier_arrive(base + S::barrier(kEmptyQ, turn % kStages));
    }
}

#endif

// kDirect: operands through tensor maps of f16 matrices.
template <int kKeys, bool kDirect, Result kResult>
static __global__ void __launch_bounds__(kThreads, 1)
    flash_kernel(const Flash f, const __grid_constant__ Maps maps) {
#if defined(BONSAI_SM90A)
    using S = Shared<kKeys>;
    extern __shared__ unsigned char shared[];
    const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            for (const Barrier full : {kFullQ, kFullK, kFullV})
                barrier_init(base + S::barrier(full, stage), 1);
            for (const Barrier empty : {kEmptyQ, kEmptyK, kEmptyV})
                barrier_init(base + S::barrier(empty, stage), 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    int n = 0, turn = 0;
    const auto each_share = [&](const auto& body) {
        for (int i = static_cast<int>(blockIdx.x); i < f.shares; i += static_cast<int>(gridDim.x)) {
            const Share share = share_of<kKeys>(f, i);
            body(share);
            n += share.blocks, ++turn;
        }
    };
    if (group == 2) {
        registers_shrink<24>();
        if (threadIdx.x == 256) {
            each_share([&](const Share& share) {
                const int64_t ready = int64_t{share.kv_head} * f.tiles * (kKeys * kDim);
                const Source from = {kDirect ? &maps : nullptr, f.k + ready, f.v + ready,
                                     share.kv_head * kDim};
                if (kDirect)
                    copy_queries<kKeys>(maps.q, base, turn, share.first_row, share.head * kDim);
                produce<kKeys>(from, base, share, n);
            });
        }
    } else {
        registers_grow<240>();
        each_share([&](const Share& share) {
            consume<kKeys, kDirect, kResult>(f, base, group, share, turn, n);
        });
    }
#endif
}

} // namespace
} // namespace bonsai::cuda
