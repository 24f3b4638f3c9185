// SPDX-License-Identifier: Apache-2.0
// The kernel of attention_hopper.
#pragma once

#include <cuda.h>

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/quantize_group.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kDim = 128;
constexpr int kQueries = 128;
constexpr int kThreads = 384;
constexpr int kStages = 2;

struct Flash {
    const float* q; // null when tensor maps give the operands
    float* out;
    int64_t q_stride, out_stride;
    const __half* k; // [kv head][tile][kKeys * kDim]
    const __half* v;
    int queries, keys, tiles; // tiles of keys
    int head_dim, heads, shared_by;
    float scale, sign_q;  // see base2_scale
    bool causal, aligned; // aligned: rows of q and out begin at multiples of 16 bytes
    CodeRows codes;       // kCodes: instead of `out`
    __half* halves;       // kHalves: instead of `out`, [queries, heads * kDim]
    // Tiles of queries, counted head by head. The first `whole` are done by one block each; each of
    // the others by `parts` blocks, which share its keys and leave sums to merge_kernel.
    int whole, parts;
    float* part_out;    // [tile - whole, part, kQueries, kDim], not divided by the total
    float2* part_stats; // [tile - whole, part, kQueries]: maximum, total
};

// A block's share of a tile.
struct Share {
    int first_row, head, kv_head;
    int first_block, blocks; // of keys
    int part;                // of part_out, or -1: the whole
};

struct Maps {
    CUtensorMap q, k, v;
};

// What is written: f32, f16 whose heads have kDim dimensions, or int8 codes with a scale for each
// head.
enum class Result { kFloats, kHalves, kCodes };

enum Barrier { kFullK, kFullV, kEmptyK, kEmptyV };

template <int kKeys> struct Shared {
    static constexpr int kTile = kKeys * kDim * 2; // bytes of k or v
    static constexpr int kQ = 0;                   // [2 warpgroups][2][64 rows][128 bytes]
    static constexpr int kK = kQueries * kDim * 2;
    static constexpr int kV = kK + kStages * kTile;
    static constexpr int kBarriers = kV + kStages * kTile; // full k, full v, empty k, empty v
    static constexpr int kFullQ = kBarriers + 4 * kStages * 8;
    static constexpr int kBytes = kFullQ + 8 + 1024; // start rounded up to 1024
    // Barriers of a stage: kFullK and the others.
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

template <int kKeys>
__device__ __forceinline__ void produce(const Source& from, uint32_t base, const Share& share) {
    using S = Shared<kKeys>;
    for (int block = 0; block < share.blocks; ++block) {
        const int stage = block % kStages;
        const uint32_t parity = block / kStages % 2 ^ 1; // the first round finds stages empty
        barrier_wait(base + S::barrier(kEmptyK, stage), parity);
        copy_tile<kKeys>(from.maps ? &from.maps->k : nullptr, from.k, from.column,
                         share.first_block + block, base + S::kK + stage * S::kTile,
                         base + S::barrier(kFullK, stage));
        barrier_wait(base + S::barrier(kEmptyV, stage), parity);
        copy_tile<kKeys>(from.maps ? &from.maps->v : nullptr, from.v, from.column,
                         share.first_block + block, base + S::kV + stage * S::kTile,
                         base + S::barrier(kFullV, stage));
    }
}

// All queries of the block through the tensor map.
template <int kKeys>
__device__ __forceinline__ void copy_queries(const CUtensorMap& map, uint32_t base, int first_row,
                                             int column) {
    using S = Shared<kKeys>;
    barrier_expect(base + S::kFullQ, kQueries * kDim * 2);
    for (int i = 0; i < 4; ++i)
        box_copy(base + S::kQ + i * 8192, &map, column + i % 2 * 64, first_row + i / 2 * 64,
                 base + S::kFullQ);
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

__device__ __forceinline__ void store_rows(const Flash& f, int row, int head, float (&total)[2],
                                           const float (&out)[kDim / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        if (row + 8 * r >= f.queries) continue;
        const float factor = 1.0f / total[r];
        float* to = f.out + int64_t{row + 8 * r} * f.out_stride + int64_t{head} * f.head_dim +
                    threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            if (j * 8 >= f.head_dim) break;
            const float x = out[4 * j + 2 * r] * factor, y = out[4 * j + 2 * r + 1] * factor;
            if (f.aligned) {
                *reinterpret_cast<float2*>(to + j * 8) = make_float2(x, y);
            } else {
                to[j * 8] = x;
                to[j * 8 + 1] = y;
            }
        }
    }
}

// The result as int8. `room`: 64 rows of 128 bytes of shared memory that only this warpgroup uses.
__device__ __forceinline__ void store_codes(const Flash& f, int group, int first_row, int head,
                                            uint32_t room, float (&total)[2],
                                            const float (&out)[kDim / 2]) {
    const int lane = static_cast<int>(threadIdx.x) % 128, row = lane / 32 * 16 + lane % 32 / 4;
    group_sync(1 + group, 128); // `room` held operands
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        const float factor = 1.0f / total[r];
        float largest = 0, sum = 0;
#pragma unroll
        for (int i = 0; i < kDim / 4; ++i) {
            const float x = fabsf(out[i / 2 * 4 + 2 * r + i % 2] * factor);
            largest = fmaxf(largest, x), sum += x;
        }
        const GroupScale scale = group_scale(largest, sum, 4);
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            const uint32_t two =
                scale.codes(out[4 * j + 2 * r] * factor, out[4 * j + 2 * r + 1] * factor, 0, 0);
            asm volatile(
                "st.shared.u16 [%0], %1;" ::"r"(room + (row + 8 * r) * 128 + j * 8 + lane % 4 * 2),
                "h"(static_cast<uint16_t>(two))
                : "memory");
        }
        if (lane % 4 == 0 && first_row + row + 8 * r < f.queries)
            f.codes.scales[head * f.codes.scale_stride + first_row + row + 8 * r] = scale.scale;
    }
    group_sync(1 + group, 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int piece = lane + i * 128;
        uint4 x;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(room + piece * 16));
        if (first_row + piece / 8 < f.queries)
            *reinterpret_cast<uint4*>(f.codes.codes + (first_row + piece / 8) * f.codes.stride +
                                      int64_t{head} * kDim + piece % 8 * 16) = x;
    }
}

// The result as f16. `room`: 64 rows of 256 bytes of shared memory that only this warpgroup uses;
// 16-byte pieces are swizzled by the row.
__device__ __forceinline__ void store_halves(const Flash& f, int group, int first_row, int head,
                                             uint32_t room, float (&total)[2],
                                             const float (&out)[kDim / 2]) {
    const int lane = static_cast<int>(threadIdx.x) % 128, row = lane / 32 * 16 + lane % 32 / 4;
    group_sync(1 + group, 128); // `room` held operands
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        const float factor = 1.0f / total[r];
        const uint32_t to = room + (row + 8 * r) * 256 + lane % 4 * 4;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            const uint32_t two =
                pack_clamped(out[4 * j + 2 * r] * factor, out[4 * j + 2 * r + 1] * factor);
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + ((j ^ row % 8) << 4)), "r"(two)
                         : "memory");
        }
    }
    group_sync(1 + group, 128);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int piece = lane + i * 128, line = piece / 16, at = piece % 16;
        uint4 x;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(room + line * 256 + ((at ^ line % 8) << 4)));
        if (first_row + line < f.queries)
            *reinterpret_cast<uint4*>(
                f.halves + (int64_t{first_row + line} * f.heads + head) * kDim + at * 8) = x;
    }
}

// What merge_kernel needs of a share.
__device__ __forceinline__ void store_part(const Flash& f, int part, int row, float (&maximum)[2],
                                           float (&total)[2], const float (&out)[kDim / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        const int64_t line = int64_t{part} * kQueries + row + 8 * r;
        if (threadIdx.x % 4 == 0) f.part_stats[line] = make_float2(maximum[r], total[r]);
        float* to = f.part_out + line * kDim + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j)
            *reinterpret_cast<float2*>(to + j * 8) =
                make_float2(out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
    }
}

// A warpgroup: `group` 0 or 1.
template <int kKeys, bool kDirect, Result kResult>
__device__ __forceinline__ void consume(const Flash& f, uint32_t base, int group,
                                        const Share& share) {
    using S = Shared<kKeys>;
    const int lane = static_cast<int>(threadIdx.x) % 128;
    const int first_row = share.first_row + group * 64;
    const int row = first_row + lane / 32 * 16 + lane % 32 / 4;
    const uint32_t q = base + S::kQ + group * 16384;
    if constexpr (kDirect) {
        barrier_wait(base + S::kFullQ, 0);
    } else {
        store_queries(f, q, first_row, share.head);
        async_fence();
        group_sync(1 + group, 128);
    }

    float s[kKeys / 2], out[kDim / 2] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {}, fade[2];
    uint32_t p[kKeys / 16][4];
    const auto weights = [&](int block) {
        const int first_key = (share.first_block + block) * kKeys, end = first_key + kKeys;
        const bool mask = end > f.keys || (f.causal && end > first_row + 1);
        soften<kKeys>(f, row, first_key, mask, s, maximum, total, fade);
    };
    barrier_wait(base + S::barrier(kFullK, 0), 0);
    query_keys<kKeys>(q, base + S::kK, s);
    wgmma_wait<0>();
    pin(s);
    if (lane == 0) barrier_arrive(base + S::barrier(kEmptyK, 0));
    weights(0);
    pack_weights_of<kKeys>(s, p);
    for (int block = 1; block < share.blocks; ++block) {
        const int stage = block % kStages, last = (block - 1) % kStages;
        barrier_wait(base + S::barrier(kFullK, stage), block / kStages % 2);
        query_keys<kKeys>(q, base + S::kK + stage * S::kTile, s);
        barrier_wait(base + S::barrier(kFullV, last), (block - 1) / kStages % 2);
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
    const int last = (share.blocks - 1) % kStages;
    barrier_wait(base + S::barrier(kFullV, last), (share.blocks - 1) / kStages % 2);
    weigh_values<kKeys, kDirect>(p, base + S::kV + last * S::kTile, out);
    wgmma_wait<0>();
    pin(out);
    if (share.part >= 0)
        store_part(f, share.part, row - share.first_row, maximum, total, out);
    else if constexpr (kResult == Result::kCodes)
        store_codes(f, group, first_row, share.head, q, total, out);
    else if constexpr (kResult == Result::kHalves)
        store_halves(f, group, first_row, share.head, q, total, out);
    else
        store_rows(f, row, share.head, total, out);
}

#endif

// Causal rows grow longer: the longest first, all heads of them.
template <int kKeys> __device__ __forceinline__ Share share_of(const Flash& f, int block) {
    const int tiles = (f.queries + kQueries - 1) / kQueries, heads = f.heads;
    const int part = block < f.whole ? -1 : block - f.whole;
    const int index = part < 0 ? block : f.whole + part / f.parts;
    const int tile = f.causal ? tiles - 1 - index / heads : index % tiles;
    const int head = f.causal ? index % heads : index / tiles;
    const int seen = f.causal ? min(f.keys, (tile + 1) * kQueries) : f.keys;
    const int blocks = (seen + kKeys - 1) / kKeys;
    const int begin = part < 0 ? 0 : part % f.parts * blocks / f.parts;
    const int end = part < 0 ? blocks : (part % f.parts + 1) * blocks / f.parts;
    return {tile * kQueries, head, head / f.shared_by, begin, end - begin, part};
}

// kDirect: operands through tensor maps of f16 matrices.
template <int kKeys, bool kDirect, Result kResult>
static __global__ void __launch_bounds__(kThreads, 1)
    flash_kernel(const Flash f, const __grid_constant__ Maps maps) {
#if defined(BONSAI_SM90A)
    using S = Shared<kKeys>;
    extern __shared__ unsigned char shared[];
    const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
    const Share share = share_of<kKeys>(f, static_cast<int>(blockIdx.x));
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            barrier_init(base + S::barrier(kFullK, stage), 1);
            barrier_init(base + S::barrier(kFullV, stage), 1);
            barrier_init(base + S::barrier(kEmptyK, stage), 2);
            barrier_init(base + S::barrier(kEmptyV, stage), 2);
        }
        barrier_init(base + S::kFullQ, 1);
        barrier_init_fence();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 2) {
        registers_shrink<24>();
        if (threadIdx.x == 256) {
            const int64_t ready = int64_t{share.kv_head} * f.tiles * (kKeys * kDim);
            const Source from = {kDirect ? &maps : nullptr, f.k + ready, f.v + ready,
                                 share.kv_head * kDim};
            if (kDirect) copy_queries<kKeys>(maps.q, base, share.first_row, share.head * kDim);
            produce<kKeys>(from, base, share);
        }
    } else {
        registers_grow<240>();
        consume<kKeys, kDirect, kResult>(f, base, group, share);
    }
#endif
}

// A warp a query: joins the parts of its tile.
template <int kKeys, Result kResult>
static __global__ void __launch_bounds__(256) merge_kernel(const Flash f) {
    const int line = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32), lane = threadIdx.x % 32;
    const int tile = line / kQueries, row = line % kQueries;
    const Share share = share_of<kKeys>(f, f.whole + tile * f.parts);
    const int query = share.first_row + row;
    if (query >= f.queries) return;
    const int64_t first = int64_t{tile} * f.parts * kQueries + row;
    float maximum = -INFINITY, total = 0;
    for (int part = 0; part < f.parts; ++part)
        maximum = fmaxf(maximum, f.part_stats[first + part * kQueries].x);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int part = 0; part < f.parts; ++part) {
        const float2 stats = f.part_stats[first + part * kQueries];
        const float weight = exp2_approximate((stats.x - maximum) * f.scale);
        const float4 x = *reinterpret_cast<const float4*>(
            f.part_out + (first + part * kQueries) * kDim + lane * 4);
        total = fmaf(weight, stats.y, total);
        sum.x = fmaf(weight, x.x, sum.x), sum.y = fmaf(weight, x.y, sum.y);
        sum.z = fmaf(weight, x.z, sum.z), sum.w = fmaf(weight, x.w, sum.w);
    }
    const float factor = 1.0f / total;
    const float y[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    if constexpr (kResult == Result::kCodes) {
        f.codes.store_group(query, share.head, lane, make_float4(y[0], y[1], y[2], y[3]));
    } else if constexpr (kResult == Result::kHalves) {
        *reinterpret_cast<uint2*>(f.halves + (int64_t{query} * f.heads + share.head) * kDim +
                                  lane * 4) =
            make_uint2(pack_clamped(y[0], y[1]), pack_clamped(y[2], y[3]));
    } else {
        float* out = f.out + query * f.out_stride + int64_t{share.head} * f.head_dim + lane * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (lane * 4 + i < f.head_dim) out[i] = y[i];
    }
}

} // namespace
} // namespace bonsai::cuda
