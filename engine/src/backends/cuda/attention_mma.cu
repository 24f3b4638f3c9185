// SPDX-License-Identifier: Apache-2.0
// attention_mma: out = softmax(scale * q k^T) v for heads of up to 128, all chips from sm_75 on.
// Layout:   q, k, v f32 or f16, out f32, row strides. Scratch: k and v as f16 [kv head, key, kDim],
//           zero behind the last key and the last dimension; with kExact a second plane holds what
//           rounding lost.
// Maths:    S = q k^T and O = p v on tensor cores with f32 sums; softmax in one pass with a running
//           maximum, base 2 (Dao et al. 2022, FlashAttention). kExact: each operand is the sum of
//           two f16, three of the four products are taken: 22 bits; operands are first scaled by a
//           power of two from their largest magnitude.
// Work:     4 warps own 64 queries of a head, 16 each, queries and sums in registers. While p v of
//           a block of keys is computed the next keys arrive, and the next values meanwhile.
// Roofline: 4 * Sq * Sk * head_dim flop a head over one read of q, k, v: compute-bound. S = 1536,
//           24 heads of 128: 29 GFLOP.
#include <algorithm>

#include "backends/cuda/attention.h"
#include "backends/cuda/half_rows.cuh"
#include "backends/cuda/mma.cuh"

namespace bonsai::cuda {

constexpr int kWarps = 4;
constexpr int kQueries = 16 * kWarps;
constexpr int kThreads = 32 * kWarps;
namespace {

// A matrix of f32 or f16.
struct Numbers {
    const void* data;
    int64_t stride;
    bool half;
    __device__ __forceinline__ float at(int64_t row, int64_t column) const {
        const int64_t i = row * stride + column;
        return half ? __half2float(static_cast<const __half*>(data)[i])
                    : static_cast<const float*>(data)[i];
    }
};

struct Flash {
    Numbers q;
    float* out;
    int64_t out_stride;
    const __half* k;
    const __half* v;
    int64_t plane;           // halves from the rounded operands to what rounding lost
    const uint32_t* largest; // of q, k, v: bits of the largest magnitude; null unless exact
    int queries, keys, padded_keys;
    int head_dim, shared_by; // query heads to a kv head
    float scale;             // of the logits for powers of two; positive
    float sign_q;            // takes the sign, so that the largest logit is the largest product
    bool causal;
};

struct Halves {
    Numbers x;
    int64_t plane;
    const uint32_t* largest;
    __half* out;
    int rows, padded_rows, head_dim, heads;
};

template <int kDim, bool kExact> struct Tile {
    static constexpr int kKeys = kExact ? 32 : 64;
    static constexpr int kPitch = kDim * 2 + 16; // bytes; rows start 4 banks apart modulo 32
    static constexpr int kPlane = kKeys * kPitch;
    static constexpr int kBytes = kPlane * (kExact ? 2 : 1);
};

} // namespace

// f32 [row, head * head_dim] to f16 [head, padded row, kDim], 8 numbers a thread.
template <int kDim, bool kExact>
static __global__ void __launch_bounds__(256) halves_kernel(const Halves h) {
    const int64_t index = int64_t{blockIdx.x} * 256 + threadIdx.x;
    const int piece = static_cast<int>(index % (kDim / 8));
    const int64_t line = index / (kDim / 8);
    const int head = static_cast<int>(line % h.heads); // neighbours in memory
    const int row = static_cast<int>(line / h.heads);
    if (row >= h.padded_rows) return;
    const float scale = kExact ? range_scale(__uint_as_float(*h.largest)) : 1.0f;
    const int64_t column = int64_t{head} * h.head_dim;
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int d = piece * 8 + 2 * i + j;
            v[j] = row < h.rows && d < h.head_dim ? h.x.at(row, column + d) * scale : 0.0f;
        }
        high[i] = pack_clamped(v[0], v[1]);
        low[i] = pack_rest(v[0], v[1], high[i]);
    }
    const int64_t at = (int64_t{head} * h.padded_rows + row) * kDim + piece * 8;
    *reinterpret_cast<uint4*>(h.out + at) = make_uint4(high[0], high[1], high[2], high[3]);
    if constexpr (kExact)
        *reinterpret_cast<uint4*>(h.out + h.plane + at) =
            make_uint4(low[0], low[1], low[2], low[3]);
}

template <int kDim, bool kExact>
__device__ __forceinline__ void load_tile(const __half* from, int64_t plane, uint32_t to) {
    using T = Tile<kDim, kExact>;
#pragma unroll
    for (int p = 0; p < (kExact ? 2 : 1); ++p) {
#pragma unroll
        for (int i = threadIdx.x; i < T::kKeys * (kDim / 8); i += kThreads) {
            const int row = i / (kDim / 8), piece = i % (kDim / 8);
            copy_async(to + p * T::kPlane + row * T::kPitch + piece * 16,
                       from + p * plane + int64_t{row} * kDim + piece * 8);
        }
    }
    copy_commit();
}

// The warp's 16 queries as operands of mma.
template <int kDim, bool kExact>
__device__ __forceinline__ void load_queries(const Flash& f, int row, int head, float scale,
                                             uint32_t (&high)[kDim / 16][4],
                                             uint32_t (&low)[kExact ? kDim / 16 : 1][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = row + lane / 4 + i % 2 * 8, d = k * 16 + lane % 4 * 2 + i / 2 * 8;
            const int64_t column = int64_t{head} * f.head_dim + d;
            const bool inside = r < f.queries && d < f.head_dim; // head_dim is even
            const float x = inside ? f.q.at(r, column) * scale : 0.0f;
            const float y = inside ? f.q.at(r, column + 1) * scale : 0.0f;
            high[k][i] = pack_clamped(x, y);
            if constexpr (kExact) low[k][i] = pack_rest(x, y, high[k][i]);
        }
    }
}

// sums[16 x kKeys] = q k^T.
template <int kDim, bool kExact, int kKeys>
__device__ __forceinline__ void query_keys(const uint32_t (&high)[kDim / 16][4],
                                           const uint32_t (&low)[kExact ? kDim / 16 : 1][4],
                                           uint32_t keys, float (&sums)[kKeys / 8][4]) {
    using T = Tile<kDim, kExact>;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
            const uint32_t at =
                keys + (j * 16 + lane % 8 + lane / 16 * 8) * T::kPitch + k * 32 + lane / 8 % 2 * 16;
            uint32_t b[4];
            load_matrices(b, at);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                mma(sums[2 * j + n], high[k], b[2 * n], b[2 * n + 1]);
                if constexpr (kExact) mma(sums[2 * j + n], low[k], b[2 * n], b[2 * n + 1]);
            }
            if constexpr (kExact) {
                load_matrices(b, at + T::kPlane);
                mma(sums[2 * j], high[k], b[0], b[1]);
                mma(sums[2 * j + 1], high[k], b[2], b[3]);
            }
        }
    }
}

// out[16 x kDim] += p v.
template <int kDim, bool kExact, int kKeys>
__device__ __forceinline__ void weigh_values(const float (&p)[kKeys / 8][4], uint32_t values,
                                             float (&out)[kDim / 8][4]) {
    using T = Tile<kDim, kExact>;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float x = p[2 * k + i / 2][i % 2 * 2], y = p[2 * k + i / 2][i % 2 * 2 + 1];
            high[i] = pack_half(x, y);
            low[i] = pack_rest(x, y, high[i]);
        }
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
            const uint32_t at = values + (k * 16 + lane % 16) * T::kPitch + j * 32 + lane / 16 * 16;
            uint32_t b[4];
            load_matrices_transposed(b, at);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                mma(out[2 * j + n], high, b[2 * n], b[2 * n + 1]);
                if constexpr (kExact) mma(out[2 * j + n], low, b[2 * n], b[2 * n + 1]);
            }
            if constexpr (kExact) {
                load_matrices_transposed(b, at + T::kPlane);
                mma(out[2 * j], high, b[0], b[1]);
                mma(out[2 * j + 1], high, b[2], b[3]);
            }
        }
    }
}

// Logits to weights: masks, moves the running maximum, rescales totals and out. Row r of the pair
// that a lane holds is `row` + 8 r.
template <int kColumns, int kOut>
__device__ __forceinline__ void soften(const Flash& f, int row, int first_key, bool mask,
                                       float scale, float (&s)[kColumns][4], float (&maximum)[2],
                                       float (&total)[2], float (&out)[kOut][4]) {
    const int lane = threadIdx.x % 32;
    if (mask) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + j * 8 + lane % 4 * 2 + i % 2;
                if (key >= f.keys || (f.causal && key > row + i / 2 * 8)) s[j][i] = -INFINITY;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = maximum[r];
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
            top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float fade =
            exp2_approximate((maximum[r] - top) * scale); // 0 at first: the maximum was -inf
        maximum[r] = top;
        const float offset = -top * scale;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; ++i) {
                s[j][i] = exp2_approximate(fmaf(s[j][i], scale, offset));
                sum += s[j][i];
            }
        }
        total[r] = total[r] * fade + sum;
#pragma unroll
        for (int j = 0; j < kOut; ++j)
            out[j][2 * r] *= fade, out[j][2 * r + 1] *= fade;
    }
}

template <int kDim>
__device__ __forceinline__ void store_rows(const Flash& f, int row, int head, float scale,
                                           float (&total)[2], const float (&out)[kDim / 8][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        if (row + 8 * r >= f.queries) continue;
        const float factor = scale / total[r];
        float* to =
            f.out + int64_t{row + 8 * r} * f.out_stride + int64_t{head} * f.head_dim + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            if (j * 8 >= f.head_dim) break; // a multiple of 8
            to[j * 8] = out[j][2 * r] * factor;
            to[j * 8 + 1] = out[j][2 * r + 1] * factor;
        }
    }
}

template <int kDim, bool kExact>
static __global__ void __launch_bounds__(kThreads) flash_kernel(const Flash f) {
    using T = Tile<kDim, kExact>;
    extern __shared__ __align__(16) unsigned char shared[];
    const uint32_t keys = shared_address(shared), values = keys + T::kBytes;
    const int head = static_cast<int>(blockIdx.y);
    // Causal rows grow longer: the longest first.
    const int tile = static_cast<int>(f.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    const int first_row = tile * kQueries + static_cast<int>(threadIdx.x) / 32 * 16;
    const int row = first_row + static_cast<int>(threadIdx.x) % 32 / 4;
    const int64_t kv = int64_t{head / f.shared_by} * f.padded_keys * kDim;
    const int seen = f.causal ? min(f.keys, (tile + 1) * kQueries) : f.keys;
    const int blocks = (seen + T::kKeys - 1) / T::kKeys;
    const float scale_q = kExact ? range_scale(__uint_as_float(f.largest[0])) : 1.0f;
    const float scale_k = kExact ? range_scale(__uint_as_float(f.largest[1])) : 1.0f;
    const float scale_v = kExact ? range_scale(__uint_as_float(f.largest[2])) : 1.0f;
    const float scale = f.scale / scale_q / scale_k;

    uint32_t q_high[kDim / 16][4], q_low[kExact ? kDim / 16 : 1][4];
    load_tile<kDim, kExact>(f.k + kv, f.plane, keys);
    load_queries<kDim, kExact>(f, first_row, head, f.sign_q * scale_q, q_high, q_low);
    float out[kDim / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (int block = 0; block < blocks; ++block) {
        const int first_key = block * T::kKeys;
        load_tile<kDim, kExact>(f.v + kv + int64_t{first_key} * kDim, f.plane, values);
        copy_wait<1>();
        __syncthreads(); // keys have arrived
        float s[T::kKeys / 8][4] = {};
        query_keys<kDim, kExact, T::kKeys>(q_high, q_low, keys, s);
        __syncthreads(); // all have read them
        if (block + 1 < blocks)
            load_tile<kDim, kExact>(f.k + kv + int64_t{first_key + T::kKeys} * kDim, f.plane, keys);
        else
            copy_commit();
        const bool mask =
            first_key + T::kKeys > f.keys || (f.causal && first_key + T::kKeys > first_row + 1);
        soften(f, row, first_key, mask, scale, s, maximum, total, out);
        copy_wait<1>();
        __syncthreads(); // values have arrived
        weigh_values<kDim, kExact, T::kKeys>(s, values, out);
        __syncthreads(); // all have read them
    }
    store_rows<kDim>(f, row, head, 1.0f / scale_v, total, out);
}

static Numbers numbers_of(const Tensor& x) {
    return {x.data, x.stride, x.dtype == DType::kF16};
}

// k or v in the form that the kernel reads.
template <int kDim, bool kExact>
static Status round_rows(const Context& context, const Tensor& x, const AttentionArgs& args,
                         const Flash& f, const uint32_t* largest, __half* out) {
    Halves h = {};
    h.x = numbers_of(x), h.plane = f.plane, h.largest = largest, h.out = out;
    h.rows = f.keys, h.padded_rows = f.padded_keys;
    h.head_dim = args.head_dim, h.heads = args.kv_heads;
    const int64_t threads = int64_t{f.padded_keys} * args.kv_heads * (kDim / 8);
    halves_kernel<kDim, kExact>
        <<<static_cast<unsigned>((threads + 255) / 256), 256, 0, context.stream>>>(h);
    return check_launch("attention operands");
}

static int padded_keys(const AttentionArgs& args) {
    return static_cast<int>((args.k.rows + 63) / 64 * 64);
}

template <int kDim, bool kExact>
static Status run(const Context& context, const AttentionArgs& args) {
    using T = Tile<kDim, kExact>;
    Flash f = {};
    f.q = numbers_of(args.q);
    f.out = args.out.f32(), f.out_stride = args.out.stride;
    f.queries = static_cast<int>(args.q.rows), f.keys = static_cast<int>(args.k.rows);
    f.padded_keys = padded_keys(args);
    f.head_dim = args.head_dim, f.shared_by = args.heads / args.kv_heads;
    f.scale = base2_scale(args.scale), f.sign_q = sign_of(args.scale), f.causal = args.causal;
    f.plane = int64_t{args.kv_heads} * f.padded_keys * kDim;
    uint32_t* largest = nullptr;
    if (kExact) {
        BONSAI_TRY(context.scratch->get(3, &largest));
        BONSAI_TRY(absolute_maximum(context, args.q, largest));
        BONSAI_TRY(absolute_maximum(context, args.k, largest + 1));
        BONSAI_TRY(absolute_maximum(context, args.v, largest + 2));
    }
    f.largest = largest;
    __half *k = nullptr, *v = nullptr;
    const auto halves = static_cast<size_t>(f.plane) * (kExact ? 2 : 1);
    BONSAI_TRY(context.scratch->get(halves, &k));
    BONSAI_TRY(context.scratch->get(halves, &v));
    f.k = k, f.v = v;
    const uint32_t* largest_v = kExact ? largest + 2 : nullptr;
    BONSAI_TRY(
        (round_rows<kDim, kExact>(context, args.k, args, f, kExact ? largest + 1 : nullptr, k)));
    BONSAI_TRY((round_rows<kDim, kExact>(context, args.v, args, f, largest_v, v)));
    constexpr int kBytes = 2 * T::kBytes;
    BONSAI_TRY(check(cudaFuncSetAttribute(flash_kernel<kDim, kExact>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                     "attention"));
    const dim3 grid(static_cast<unsigned>((f.queries + kQueries - 1) / kQueries),
                    static_cast<unsigned>(args.heads));
    flash_kernel<kDim, kExact><<<grid, kThreads, kBytes, context.stream>>>(f);
    return check_launch("attention");
}

uint64_t mma_scratch(const AttentionArgs& args, bool exact) {
    const int dim = args.head_dim <= 32 ? 32 : args.head_dim <= 64 ? 64 : 128;
    const int64_t plane = int64_t{args.kv_heads} * padded_keys(args) * dim;
    return static_cast<uint64_t>(plane) * 2 * (exact ? 2 : 1) * sizeof(__half);
}

Status attention_mma(const Context& context, const AttentionArgs& args, bool exact) {
    if (args.head_dim <= 32)
        return exact ? run<32, true>(context, args) : run<32, false>(context, args);
    if (args.head_dim <= 64)
        return exact ? run<64, true>(context, args) : run<64, false>(context, args);
    return exact ? run<128, true>(context, args) : run<128, false>(context, args);
}

} // namespace bonsai::cuda
