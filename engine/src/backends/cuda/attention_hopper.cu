// SPDX-License-Identifier: Apache-2.0
// attention_hopper: out = softmax(scale * q k^T) v on sm_90a, heads of 72 to 128.
// Layout:   q, k, v, out f32 with row strides. Scratch: tiles of kKeys keys as f16, each the bytes
//           that shared memory wants (see hopper.cuh): k as [2][kKeys][64 dimensions], v transposed
//           as [kKeys / 64][128 dimensions][64 keys].
// Maths:    as attention_mma: f16 operands, f32 sums, softmax in one pass, base 2.
// Work:     a block owns 128 queries of a head: two warpgroups of 64, and one that only starts
//           copies of whole tiles, two stages deep. A warpgroup's products with the next keys run
//           while it computes exponentials; named barriers let the two warpgroups take turns at the
//           tensor cores (Shah et al. 2024, FlashAttention-3).
// Roofline: 4 * Sq * Sk * head_dim flop a head over one read of q, k, v: compute-bound.
#include <algorithm>

#include "backends/cuda/attention.h"
#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.cuh"

namespace bonsai::cuda {

constexpr int kDim = 128;
constexpr int kQueries = 128;
constexpr int kThreads = 384;
constexpr int kStages = 2;

namespace {

struct Flash {
    const float* q;
    float* out;
    int64_t q_stride, out_stride;
    const __half* k; // [kv head][tile][kKeys * kDim]
    const __half* v;
    int queries, keys, tiles; // tiles of keys
    int head_dim, shared_by;
    float scale, sign_q;  // see base2_scale
    bool causal, aligned; // aligned: rows of q and out begin at multiples of 16 bytes
};

struct Operands {
    const float *k, *v;
    int64_t k_stride, v_stride;
    __half *k_out, *v_out;
    int keys, tiles, heads, head_dim;
    int key_blocks; // blocks of threads that write k
};

} // namespace

// 8 dimensions of a key a thread.
template <int kKeys> __device__ __forceinline__ void write_key(const Operands& o, int64_t index) {
    const int piece = static_cast<int>(index % (kDim / 8));
    const int head = static_cast<int>(index / (kDim / 8) % o.heads);
    const int key = static_cast<int>(index / (kDim / 8) / o.heads);
    if (key >= o.tiles * kKeys) return;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (key < o.keys && piece * 8 < o.head_dim) {
        const float* x = o.k + key * o.k_stride + int64_t{head} * o.head_dim + piece * 8;
        packed = make_uint4(pack_clamped(x[0], x[1]), pack_clamped(x[2], x[3]),
                            pack_clamped(x[4], x[5]), pack_clamped(x[6], x[7]));
    }
    const int row = key % kKeys;
    const int64_t tile = int64_t{head} * o.tiles + key / kKeys;
    reinterpret_cast<uint4*>(o.k_out)[tile * (kKeys * kDim / 8) + piece / 8 * (kKeys * 8) +
                                      row * 8 + (piece % 8 ^ row % 8)] = packed;
}

// 16 keys of a dimension a thread.
template <int kKeys> __device__ __forceinline__ void write_value(const Operands& o, int64_t index) {
    const int d = static_cast<int>(index % kDim);
    const int head = static_cast<int>(index / kDim % o.heads);
    const int first = static_cast<int>(index / kDim / o.heads) * 16;
    if (first >= o.tiles * kKeys) return;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const bool inside = first + i < o.keys && d < o.head_dim;
        x[i] = inside ? o.v[(first + i) * o.v_stride + int64_t{head} * o.head_dim + d] : 0.0f;
    }
    const int column = first % kKeys, piece = column % 64 / 8;
    const int64_t tile = int64_t{head} * o.tiles + first / kKeys;
    uint4* to = reinterpret_cast<uint4*>(o.v_out) + tile * (kKeys * kDim / 8) +
                column / 64 * (kDim * 8) + d * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float* y = x + 8 * i;
        to[(piece + i) ^ d % 8] = make_uint4(pack_clamped(y[0], y[1]), pack_clamped(y[2], y[3]),
                                             pack_clamped(y[4], y[5]), pack_clamped(y[6], y[7]));
    }
}

template <int kKeys>
static __global__ void __launch_bounds__(256) operands_kernel(const Operands o) {
    const int block = static_cast<int>(blockIdx.x);
    if (block < o.key_blocks)
        write_key<kKeys>(o, int64_t{block} * 256 + threadIdx.x);
    else
        write_value<kKeys>(o, int64_t{block - o.key_blocks} * 256 + threadIdx.x);
}

enum Barrier { kFullK, kFullV, kEmptyK, kEmptyV };

template <int kKeys> struct Shared {
    static constexpr int kTile = kKeys * kDim * 2; // bytes of k or v
    static constexpr int kQ = 0;                   // [2 warpgroups][2][64 rows][128 bytes]
    static constexpr int kK = kQueries * kDim * 2;
    static constexpr int kV = kK + kStages * kTile;
    static constexpr int kBarriers = kV + kStages * kTile; // full k, full v, empty k, empty v
    static constexpr int kBytes = kBarriers + 4 * kStages * 8 + 1024; // start rounded up to 1024
    // Barriers of a stage: kFullK and the others.
    static __device__ __forceinline__ uint32_t barrier(int what, int stage) {
        return kBarriers + (what * kStages + stage) * 8;
    }
};

#if defined(BONSAI_SM90A)

// One thread: copies tiles of keys and values in turn as stages become free.
template <int kKeys>
__device__ __forceinline__ void produce(const Flash& f, uint32_t base, int head, int blocks) {
    using S = Shared<kKeys>;
    const int64_t first = int64_t{head / f.shared_by} * f.tiles * (kKeys * kDim);
    for (int block = 0; block < blocks; ++block) {
        const int stage = block % kStages;
        const uint32_t parity = block / kStages % 2 ^ 1; // the first round finds stages empty
        const int64_t at = first + int64_t{block} * (kKeys * kDim);
        barrier_wait(base + S::barrier(kEmptyK, stage), parity);
        barrier_expect(base + S::barrier(kFullK, stage), S::kTile);
        bulk_copy(base + S::kK + stage * S::kTile, f.k + at, S::kTile,
                  base + S::barrier(kFullK, stage));
        barrier_wait(base + S::barrier(kEmptyV, stage), parity);
        barrier_expect(base + S::barrier(kFullV, stage), S::kTile);
        bulk_copy(base + S::kV + stage * S::kTile, f.v + at, S::kTile,
                  base + S::barrier(kFullV, stage));
    }
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

// Queues out += p v.
template <int kKeys>
__device__ __forceinline__ void weigh_values(const uint32_t (&p)[kKeys / 16][4], uint32_t v,
                                             float (&out)[kDim / 2]) {
    const uint64_t b = operand(v);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
        wgmma(out, p[i], b + i / 4 * (kDim * 128 >> 4) + i % 4 * 2, 1);
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

// A warpgroup: `group` 0 or 1. kTurns: products are queued in turns.
template <int kKeys, bool kTurns>
__device__ __forceinline__ void consume(const Flash& f, uint32_t base, int group, int first_row,
                                        int head, int blocks) {
    using S = Shared<kKeys>;
    const int lane = static_cast<int>(threadIdx.x) % 128;
    const int row = first_row + lane / 32 * 16 + lane % 32 / 4;
    const uint32_t q = base + S::kQ + group * 16384;
    const auto masked = [&](int first_key) {
        return first_key + kKeys > f.keys || (f.causal && first_key + kKeys > first_row + 1);
    };
    store_queries(f, q, first_row, head);
    async_fence();
    group_sync(1 + group, 128);
    if (kTurns && group == 1) group_arrive(3, 256);

    float s[kKeys / 2], out[kDim / 2] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {}, fade[2];
    uint32_t p[kKeys / 16][4];
    barrier_wait(base + S::barrier(kFullK, 0), 0);
    query_keys<kKeys>(q, base + S::kK, s);
    wgmma_wait<0>();
    pin(s);
    if (lane == 0) barrier_arrive(base + S::barrier(kEmptyK, 0));
    soften<kKeys>(f, row, 0, masked(0), s, maximum, total, fade);
    pack_weights_of<kKeys>(s, p);
    for (int block = 1; block < blocks; ++block) {
        const int stage = block % kStages, last = (block - 1) % kStages;
        barrier_wait(base + S::barrier(kFullK, stage), block / kStages % 2);
        if (kTurns) group_sync(3 + group, 256);
        query_keys<kKeys>(q, base + S::kK + stage * S::kTile, s);
        barrier_wait(base + S::barrier(kFullV, last), (block - 1) / kStages % 2);
        weigh_values<kKeys>(p, base + S::kV + last * S::kTile, out);
        if (kTurns && (group == 0 || block + 1 < blocks)) group_arrive(4 - group, 256);
        wgmma_wait<1>();
        pin(s);
        if (lane == 0) barrier_arrive(base + S::barrier(kEmptyK, stage));
        soften<kKeys>(f, row, block * kKeys, masked(block * kKeys), s, maximum, total, fade);
        wgmma_wait<0>();
        pin(out);
        if (lane == 0) barrier_arrive(base + S::barrier(kEmptyV, last));
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i)
            out[i] *= fade[i % 4 / 2];
        pack_weights_of<kKeys>(s, p);
    }
    const int last = (blocks - 1) % kStages;
    barrier_wait(base + S::barrier(kFullV, last), (blocks - 1) / kStages % 2);
    weigh_values<kKeys>(p, base + S::kV + last * S::kTile, out);
    wgmma_wait<0>();
    pin(out);
    store_rows(f, row, head, total, out);
}

#endif

template <int kKeys, bool kTurns>
static __global__ void __launch_bounds__(kThreads, 1) flash_kernel(const Flash f) {
#if defined(BONSAI_SM90A)
    using S = Shared<kKeys>;
    extern __shared__ unsigned char shared[];
    const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
    const int head = static_cast<int>(blockIdx.y);
    const int tile = static_cast<int>(f.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    const int seen = f.causal ? min(f.keys, (tile + 1) * kQueries) : f.keys;
    const int blocks = (seen + kKeys - 1) / kKeys;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            barrier_init(base + S::barrier(kFullK, stage), 1);
            barrier_init(base + S::barrier(kFullV, stage), 1);
            barrier_init(base + S::barrier(kEmptyK, stage), 2);
            barrier_init(base + S::barrier(kEmptyV, stage), 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 2) {
        registers_shrink<24>();
        if (threadIdx.x == 256) produce<kKeys>(f, base, head, blocks);
    } else {
        registers_grow<240>();
        consume<kKeys, kTurns>(f, base, group, tile * kQueries + group * 64, head, blocks);
    }
#endif
}

template <int kKeys, bool kTurns>
static Status run(const Context& context, const AttentionArgs& args) {
    Flash f = {};
    f.q = args.q.f32(), f.q_stride = args.q.stride;
    f.out = args.out.f32(), f.out_stride = args.out.stride;
    f.queries = static_cast<int>(args.q.rows), f.keys = static_cast<int>(args.k.rows);
    f.tiles = (f.keys + kKeys - 1) / kKeys;
    f.head_dim = args.head_dim, f.shared_by = args.heads / args.kv_heads;
    f.scale = base2_scale(args.scale), f.sign_q = sign_of(args.scale), f.causal = args.causal;
    f.aligned = f.q_stride % 4 == 0 && f.out_stride % 4 == 0 &&
                reinterpret_cast<uintptr_t>(f.q) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(f.out) % 16 == 0;
    __half *k = nullptr, *v = nullptr;
    const auto halves = static_cast<size_t>(args.kv_heads) * f.tiles * kKeys * kDim;
    BONSAI_TRY(context.scratch->get(halves, &k));
    BONSAI_TRY(context.scratch->get(halves, &v));
    f.k = k, f.v = v;
    const Operands o = {args.k.f32(),
                        args.v.f32(),
                        args.k.stride,
                        args.v.stride,
                        k,
                        v,
                        f.keys,
                        f.tiles,
                        args.kv_heads,
                        args.head_dim,
                        static_cast<int>((halves / 8 + 255) / 256)};
    const auto blocks = static_cast<unsigned>(o.key_blocks + (halves / 16 + 255) / 256);
    operands_kernel<kKeys><<<blocks, 256, 0, context.stream>>>(o);
    BONSAI_TRY(check_launch("attention operands"));
    constexpr int kBytes = Shared<kKeys>::kBytes;
    BONSAI_TRY(check(cudaFuncSetAttribute(flash_kernel<kKeys, kTurns>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                     "attention"));
    const dim3 grid(static_cast<unsigned>((f.queries + kQueries - 1) / kQueries),
                    static_cast<unsigned>(args.heads));
    flash_kernel<kKeys, kTurns><<<grid, kThreads, kBytes, context.stream>>>(f);
    return check_launch("attention");
}

Status attention_hopper(const Context& context, const AttentionArgs& args) {
    return run<128, true>(context, args);
}

} // namespace bonsai::cuda
