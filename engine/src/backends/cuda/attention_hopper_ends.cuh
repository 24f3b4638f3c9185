// SPDX-License-Identifier: Apache-2.0
// What a block of attention_hopper takes, and how its result is written.
#pragma once

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/quantize_group.cuh"
#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kDim = 128;
constexpr int kQueries = 128;

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
    CodeRows codes;       // kCodes, kHalves: instead of `out`
    __half* halves;       // kHalves: [queries, heads * kDim]
    // Tiles of queries, counted head by head. The first `whole` are a share each; each of the
    // others is `parts` shares, which divide its keys and leave sums to the kernel behind.
    int whole, parts;
    int shares;         // of all tiles
    float* part_out;    // [tile - whole, part, kQueries, kDim], not divided by the total
    float2* part_stats; // [tile - whole, part, kQueries]: maximum, total
};

// What a block does at a time: a tile, or some of its keys.
struct Share {
    int first_row, head, kv_head;
    int first_block, blocks; // of keys
    int part;                // of part_out, or -1: the whole
};

// What is written: f32, f16 for quantize_heads_kernel, or int8 codes with a scale for each head.
enum class Result { kFloats, kHalves, kCodes };

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

#if defined(BONSAI_SM90A)

// Over the four lanes that share a row.
__device__ __forceinline__ float sum_of_row(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ void store_rows(const Flash& f, int row, int head, float (&total)[2],
                                           const float (&out)[kDim / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] = sum_of_row(total[r]);
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
        total[r] = sum_of_row(total[r]);
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
        total[r] = sum_of_row(total[r]);
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

// What join_parts needs of a share.
__device__ __forceinline__ void store_part(const Flash& f, int part, int row, float (&maximum)[2],
                                           float (&total)[2], const float (&out)[kDim / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] = sum_of_row(total[r]);
        const int64_t line = int64_t{part} * kQueries + row + 8 * r;
        if (threadIdx.x % 4 == 0) f.part_stats[line] = make_float2(maximum[r], total[r]);
        float* to = f.part_out + line * kDim + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j)
            *reinterpret_cast<float2*>(to + j * 8) =
                make_float2(out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
    }
}

// The result of a share, or what join_parts needs. `room`: the warpgroup's queries.
template <Result kResult>
__device__ __forceinline__ void store(const Flash& f, const Share& share, int group, uint32_t room,
                                      float (&maximum)[2], float (&total)[2],
                                      const float (&out)[kDim / 2]) {
    const int lane = static_cast<int>(threadIdx.x) % 128, first_row = share.first_row + group * 64;
    const int row = first_row + lane / 32 * 16 + lane % 32 / 4;
    if (share.part >= 0)
        store_part(f, share.part, row - share.first_row, maximum, total, out);
    else if constexpr (kResult == Result::kCodes)
        store_codes(f, group, first_row, share.head, room, total, out);
    else if constexpr (kResult == Result::kHalves)
        store_halves(f, group, first_row, share.head, room, total, out);
    else
        store_rows(f, row, share.head, total, out);
}

#endif

// Four dimensions of a query, of lane `lane`, from the parts of its tile; `tile` counts from
// `whole`.
__device__ __forceinline__ float4 join_parts(const Flash& f, int tile, int row, int lane) {
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
    return make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
}

// A warp a query: joins the parts of its tile.
template <int kKeys, Result kResult>
static __global__ void __launch_bounds__(256) merge_kernel(const Flash f) {
    const int line = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32), lane = threadIdx.x % 32;
    const int tile = line / kQueries, row = line % kQueries;
    const Share share = share_of<kKeys>(f, f.whole + tile * f.parts);
    const int query = share.first_row + row;
    if (query >= f.queries) return;
    const float4 sum = join_parts(f, tile, row, lane);
    if constexpr (kResult == Result::kCodes) {
        f.codes.store_group(query, share.head, lane, sum);
    } else {
        const float y[4] = {sum.x, sum.y, sum.z, sum.w};
        float* out = f.out + query * f.out_stride + int64_t{share.head} * f.head_dim + lane * 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (lane * 4 + i < f.head_dim) out[i] = y[i];
    }
}

// A warp four heads of a query: codes of f16, and of parts rounded to that.
static __global__ void __launch_bounds__(256) quantize_heads_kernel(const Flash f) {
    const int unit = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32), lane = threadIdx.x % 32;
    const int spans = (f.heads + kPieces - 1) / kPieces;
    const int query = unit / spans, span = unit % spans, first = span * kPieces;
    if (query >= f.queries) return;
    const int tiles = (f.queries + kQueries - 1) / kQueries, pieces = min(kPieces, f.heads - first);
    float4 v[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        v[i] = i < pieces
                   ? four(f.halves + (int64_t{query} * f.heads + first + i) * kDim + lane * 4, true)
                   : float4();
    for (int i = 0; i < pieces; ++i) {
        const int tile = (first + i) * tiles + query / kQueries;
        if (tile < f.whole) continue;
        const float4 x = join_parts(f, tile - f.whole, query % kQueries, lane);
        const uint32_t low = pack_clamped(x.x, x.y), high = pack_clamped(x.z, x.w);
        const float2 a = __half22float2(reinterpret_cast<const __half2&>(low)),
                     b = __half22float2(reinterpret_cast<const __half2&>(high));
#pragma unroll
        for (int j = 0; j < kPieces; ++j) // registers have no index
            if (j == i) v[j] = make_float4(a.x, a.y, b.x, b.y);
    }
    f.codes.store(query, span, pieces, lane, v);
}

} // namespace
} // namespace bonsai::cuda
