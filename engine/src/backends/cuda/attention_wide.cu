// SPDX-License-Identifier: Apache-2.0
// attention_wide: out = softmax(scale * q k^T) v for heads wider than 128 (one of 512 in the VAE).
// Layout:   q, k, v f32 or f16, out f32, row strides. Scratch for a head: k and v^T packed as right
//           operands of shift_gemm, and for a band of queries q in f16, logits in f32, weights in
//           f16.
// Maths:    products on tensor cores, f16 operands, f32 sums; weights exp(x - max) are rounded to
//           f16 before, not after, the division by their f32 sum.
// Work:     two products and one softmax a band, which keeps logits within kBandBytes; the second
//           product is cut along the keys, and join_kernel adds its shares in order.
// Roofline: 4 * Sq * Sk * head_dim flop; logits and weights make 10 bytes a pair of tokens: at
//           head_dim 512 205 flop a byte, near the balance of an H200.
#include <algorithm>
#include <type_traits>

#include "backends/cuda/attention.h"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/shift_gemm.h"

namespace bonsai::cuda {

constexpr int64_t kBandBytes = int64_t{64} << 20; // of logits
constexpr int kThreads = 256;

// out [rows, padded] = f16 of sign * x [rows, cols], zero behind the last column.
template <typename T>
static __global__ void __launch_bounds__(kThreads)
    queries_kernel(const T* x, int64_t stride, int64_t rows, int cols, int padded, float sign,
                   __half* out) {
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t row = index / padded;
    const int column = static_cast<int>(index - row * padded);
    if (row >= rows) return;
    out[index] =
        column < cols ? to_half(sign * static_cast<float>(x[row * stride + column])) : __half();
}

// The larger or the sum of what all threads give.
template <bool kMaximum> __device__ __forceinline__ float combine(float x, float* shared) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(~0u, x, offset);
        x = kMaximum ? fmaxf(x, other) : x + other;
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < kThreads / 32; ++i)
        x = kMaximum ? fmaxf(x, shared[i]) : x + shared[i];
    __syncthreads();
    return x;
}

// One block a query: weights of the keys it sees, zero for the others; inverse[row] = 1 / sum.
static __global__ void __launch_bounds__(kThreads)
    soften_kernel(const float* logits, int64_t first_query, int keys, int padded, bool causal,
                  float scale, __half* weights, float* inverse) {
    __shared__ float shared[kThreads / 32];
    const int64_t row = blockIdx.x;
    const float* x = logits + row * padded;
    const int seen = causal ? static_cast<int>(min(int64_t{keys}, first_query + row + 1)) : keys;
    float top = -INFINITY;
    for (int j = static_cast<int>(threadIdx.x); j < seen; j += kThreads)
        top = fmaxf(top, x[j]);
    top = combine<true>(top, shared);
    const float offset = -top * scale;
    float sum = 0;
    for (int j = static_cast<int>(threadIdx.x); j < padded; j += kThreads) {
        const float p = j < seen ? exp2_approximate(fmaf(x[j], scale, offset)) : 0.0f;
        weights[row * padded + j] = __float2half_rn(p);
        sum += p;
    }
    sum = combine<false>(sum, shared);
    if (threadIdx.x == 0) inverse[row] = 1.0f / sum;
}

// out = inverse * the sum of `parts` matrices [rows, cols].
static __global__ void __launch_bounds__(kThreads)
    join_kernel(const float* part, int parts, int64_t part_stride, int64_t rows, int cols,
                const float* inverse, float* out, int64_t out_stride) {
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t row = index / cols;
    if (row >= rows) return;
    float sum = 0;
    for (int i = 0; i < parts; ++i)
        sum += part[i * part_stride + index];
    out[row * out_stride + (index - row * cols)] = sum * inverse[row];
}

namespace {

struct Band {
    __half *q, *weights, *keys, *values;
    float *logits, *inverse;
    float* shares; // of sums over the keys, where values_gemm is cut into parts
    int64_t rows;
    int width, padded_keys; // head_dim and keys, rounded up
    ShiftGemm logits_gemm, values_gemm;
    GemmPlan logits_plan, values_plan;
};

// Bytes of scratch of a band.
struct Sizes {
    size_t q, weights, keys, values, logits, inverse, shares;
};

} // namespace

// All but the addresses.
static Band plan_band(const Context& context, const AttentionArgs& args) {
    Band b = {};
    b.width = static_cast<int>(round_up(args.head_dim, kChunk));
    b.padded_keys = static_cast<int>(round_up(args.k.rows, kChunk));
    b.rows = std::min(round_up(args.q.rows, 128),
                      std::max<int64_t>(128, kBandBytes / 4 / b.padded_keys / 128 * 128));
    ShiftGemm& s = b.logits_gemm;
    s.n = static_cast<int>(args.k.rows), s.channels = b.width, s.rows = b.rows;
    s.out_stride = b.padded_keys, s.a_rows = b.rows + kRowSlack;
    ShiftGemm& v = b.values_gemm;
    v.n = args.head_dim, v.channels = b.padded_keys, v.rows = b.rows;
    v.out_stride = args.out.stride, v.a_rows = s.a_rows;
    b.logits_plan = plan_gemm(context, s);
    b.values_plan = plan_gemm(context, v);
    // Few tiles and a long sum: shares of it keep all multiprocessors busy, two blocks each.
    const int64_t tiles = (b.rows + 127) / 128 * ((v.n + 127) / 128);
    const int64_t most = std::max<int64_t>(1, b.padded_keys / (4 * kChunk));
    v.parts = static_cast<int>(std::clamp<int64_t>(2 * context.multiprocessors / tiles, 1, most));
    v.part_stride = b.rows * v.n;
    return b;
}

static Sizes sizes_of(const Band& b) {
    const ShiftGemm &s = b.logits_gemm, &v = b.values_gemm;
    const auto rows = static_cast<size_t>(s.a_rows), width = static_cast<size_t>(b.width),
               keys = static_cast<size_t>(b.padded_keys);
    Sizes sizes = {};
    sizes.q = rows * width * sizeof(__half);
    sizes.weights = rows * keys * sizeof(__half);
    sizes.keys = packed_halves(b.logits_plan, s.n, s.channels, 1) * sizeof(__half);
    sizes.values = packed_halves(b.values_plan, v.n, v.channels, 1) * sizeof(__half);
    sizes.logits = rows * keys * sizeof(float);
    sizes.inverse = rows * sizeof(float);
    if (v.parts > 1) sizes.shares = static_cast<size_t>(v.parts * v.part_stride) * sizeof(float);
    return sizes;
}

static Status prepare(const Context& context, const AttentionArgs& args, Band* b) {
    *b = plan_band(context, args);
    const Sizes sizes = sizes_of(*b);
    const auto get = [&](size_t bytes, auto* out) {
        void* piece = nullptr;
        BONSAI_TRY(context.scratch->get(bytes, &piece));
        *out = static_cast<std::remove_reference_t<decltype(*out)>>(piece);
        return Status();
    };
    BONSAI_TRY(get(sizes.q, &b->q));
    BONSAI_TRY(get(sizes.weights, &b->weights));
    BONSAI_TRY(get(sizes.keys, &b->keys));
    BONSAI_TRY(get(sizes.values, &b->values));
    BONSAI_TRY(get(sizes.logits, &b->logits));
    BONSAI_TRY(get(sizes.inverse, &b->inverse));
    ShiftGemm &s = b->logits_gemm, &v = b->values_gemm;
    s.a = b->q, s.b = b->keys, s.out = b->logits;
    v.a = b->weights, v.b = b->values;
    if (v.parts > 1) return get(sizes.shares, &b->shares);
    v.row_scale = b->inverse;
    return Status();
}

uint64_t wide_scratch(const Context& context, const AttentionArgs& args) {
    const Sizes s = sizes_of(plan_band(context, args));
    return s.q + s.weights + s.keys + s.values + s.logits + s.inverse + s.shares;
}

static Status attend(const Context& context, const AttentionArgs& args, const Tensor& q,
                     const Tensor& out, int64_t first, Band& b) {
    const int64_t rows = std::min(b.rows, q.rows - first);
    const auto blocks = static_cast<unsigned>((rows * b.width + kThreads - 1) / kThreads);
    const float sign = sign_of(args.scale);
    const Tensor part = q.slice_rows(first, rows);
    if (q.dtype == DType::kF16)
        queries_kernel<<<blocks, kThreads, 0, context.stream>>>(
            static_cast<const __half*>(part.data), q.stride, rows, args.head_dim, b.width, sign,
            b.q);
    else
        queries_kernel<<<blocks, kThreads, 0, context.stream>>>(part.f32(), q.stride, rows,
                                                                args.head_dim, b.width, sign, b.q);
    BONSAI_TRY(check_launch("attention queries"));
    ShiftGemm& s = b.logits_gemm;
    s.rows = s.pitch = s.width = rows;
    BONSAI_TRY(shift_gemm(context, b.logits_plan, s));
    soften_kernel<<<static_cast<unsigned>(rows), kThreads, 0, context.stream>>>(
        b.logits, first, s.n, b.padded_keys, args.causal, base2_scale(args.scale), b.weights,
        b.inverse);
    BONSAI_TRY(check_launch("attention softmax"));
    ShiftGemm& v = b.values_gemm;
    v.rows = v.pitch = v.width = rows;
    if (v.parts == 1) {
        v.out = out.row(first);
        return shift_gemm(context, b.values_plan, v);
    }
    v.out = b.shares, v.out_stride = v.n;
    BONSAI_TRY(shift_gemm(context, b.values_plan, v));
    join_kernel<<<static_cast<unsigned>((rows * v.n + kThreads - 1) / kThreads), kThreads, 0,
                  context.stream>>>(b.shares, v.parts, v.part_stride, rows, v.n, b.inverse,
                                    out.row(first), out.stride);
    return check_launch("attention join");
}

Status attention_wide(const Context& context, const AttentionArgs& args) {
    Band b = {};
    BONSAI_TRY(prepare(context, args, &b));
    const int shared_by = args.heads / args.kv_heads;
    for (int head = 0; head < args.heads; ++head) {
        const int64_t column = int64_t{head} * args.head_dim;
        if (head % shared_by == 0) {
            const int64_t kv = int64_t{head / shared_by} * args.head_dim;
            BONSAI_TRY(pack_weights(context, b.logits_plan, args.k.slice_cols(kv, args.head_dim),
                                    args.head_dim, 1, b.keys));
            BONSAI_TRY(pack_transposed(context, b.values_plan, args.v.slice_cols(kv, args.head_dim),
                                       b.values));
        }
        const Tensor q = args.q.slice_cols(column, args.head_dim);
        const Tensor out = args.out.slice_cols(column, args.head_dim);
        for (int64_t first = 0; first < q.rows; first += b.rows)
            BONSAI_TRY(attend(context, args, q, out, first, b));
    }
    return Status();
}

} // namespace bonsai::cuda
