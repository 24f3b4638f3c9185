// SPDX-License-Identifier: Apache-2.0
// head_norm_rope: each head of a row divided by its root mean square, times gain[head_dim]; then
// pair i, (a, b), becomes (a cos - b sin, b cos + a sin) with the row's cos[i], sin[i]. In place,
// on one or two matrices by one launch.
// Layout:   x f32 or f16 rows with a stride, head h at column h * head_dim; cos, sin
//           [S, head_dim / 2].
// Maths:    f32, sums in a fixed tree.
// Work:     heads of 128: a warp eight heads of a row, half a warp a head, eight columns a lane;
//           all loads of the four rounds under way at once, gain, cosines and sines kept. Others: a
//           warp a head; a lane holds pairs lane, lane + 32, ..., up to 4 of them (head_dim 256),
//           and reads longer heads twice.
// Roofline: 8 bytes an element, 4 of f16, a few flop: memory-bound. 1536 x 6144: 75 or 38 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/rows.cuh"

namespace bonsai::cuda {

namespace {

constexpr int kWarps = 8;                                    // of a block
constexpr int kHeld = 4;                                     // pairs of a lane
constexpr int kDim = 128, kRounds = 4, kChunk = 2 * kRounds; // heads of a warp

template <typename T> struct Heads {
    T* x;
    int64_t stride;
    const float* gain;
    int64_t rows;
    int heads;
};
struct Turn {
    Rows cos, sin;
    int head_dim;
    float eps;
};

__device__ float to_float(float v) {
    return v;
}
__device__ float to_float(__half v) {
    return __half2float(v);
}
__device__ void put(float* to, float v) {
    *to = v;
}
__device__ void put(__half* to, float v) {
    *to = __float2half_rn(v);
}

template <typename T, bool kHalves> struct Pairs {
    T* head;
    int half;
    __device__ int first(int i) const { return kHalves ? i : 2 * i; }
    __device__ int second(int i) const { return kHalves ? i + half : 2 * i + 1; }
};

template <typename T, bool kHalves>
__device__ void rotate(const Heads<T>& p, const Turn& turn, const Pairs<T, kHalves>& at, int64_t s,
                       int i, float a, float b, float inverse) {
    const int first = at.first(i), second = at.second(i);
    const float c = turn.cos.row(s)[i], n = turn.sin.row(s)[i];
    a = a * inverse * p.gain[first];
    b = b * inverse * p.gain[second];
    put(at.head + first, a * c - b * n);
    put(at.head + second, b * c + a * n);
}

template <typename T, bool kHalves> __global__ void head_norm_rope_kernel(Heads<T> p, Turn turn) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (unit >= p.rows * p.heads) return;
    const int64_t s = unit / p.heads;
    const Pairs<T, kHalves> at{p.x + s * p.stride + unit % p.heads * turn.head_dim,
                               turn.head_dim / 2};
    float a[kHeld], b[kHeld], squares = 0;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarp;
        a[j] = i < at.half ? to_float(at.head[at.first(i)]) : 0.0f;
        b[j] = i < at.half ? to_float(at.head[at.second(i)]) : 0.0f;
        squares += a[j] * a[j] + b[j] * b[j];
    }
    for (int i = lane + kHeld * kWarp; i < at.half; i += kWarp) {
        const float x = to_float(at.head[at.first(i)]), y = to_float(at.head[at.second(i)]);
        squares += x * x + y * y;
    }
    const float inverse = rsqrtf(warp_sum(squares) / static_cast<float>(turn.head_dim) + turn.eps);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int i = lane + j * kWarp;
        if (i < at.half) rotate(p, turn, at, s, i, a[j], b[j], inverse);
    }
    for (int i = lane + kHeld * kWarp; i < at.half; i += kWarp)
        rotate(p, turn, at, s, i, to_float(at.head[at.first(i)]), to_float(at.head[at.second(i)]),
               inverse);
}

// Eight columns of a head, of lane l of 16: 8 l and on, or 4 l and on and as many 64 further.
struct Eight {
    float4 a, b;
};
template <bool kHalves> __device__ __forceinline__ int second_four(int l) {
    return kHalves ? 4 * l + kDim / 2 : 8 * l + 4;
}
template <bool kHalves> __device__ __forceinline__ int first_four(int l) {
    return kHalves ? 4 * l : 8 * l;
}

template <bool kHalves> __device__ __forceinline__ Eight get_eight(const float* head, int l) {
    return {four(head + first_four<kHalves>(l), true), four(head + second_four<kHalves>(l), true)};
}
__device__ __forceinline__ float4 floats_of(uint32_t x, uint32_t y) {
    const float2 low = __half22float2(reinterpret_cast<const __half2&>(x)),
                 high = __half22float2(reinterpret_cast<const __half2&>(y));
    return make_float4(low.x, low.y, high.x, high.y);
}
template <bool kHalves> __device__ __forceinline__ Eight get_eight(const __half* head, int l) {
    if constexpr (kHalves) return {four(head + 4 * l, true), four(head + 4 * l + kDim / 2, true)};
    const uint4 x = *reinterpret_cast<const uint4*>(head + 8 * l);
    return {floats_of(x.x, x.y), floats_of(x.z, x.w)};
}

__device__ __forceinline__ uint2 halves_of(float4 v) {
    const __half2 low = __floats2half2_rn(v.x, v.y), high = __floats2half2_rn(v.z, v.w);
    return make_uint2(reinterpret_cast<const uint32_t&>(low),
                      reinterpret_cast<const uint32_t&>(high));
}
template <bool kHalves>
__device__ __forceinline__ void put_eight(float* head, int l, const Eight& v) {
    *reinterpret_cast<float4*>(head + first_four<kHalves>(l)) = v.a;
    *reinterpret_cast<float4*>(head + second_four<kHalves>(l)) = v.b;
}
template <bool kHalves>
__device__ __forceinline__ void put_eight(__half* head, int l, const Eight& v) {
    const uint2 a = halves_of(v.a), b = halves_of(v.b);
    if constexpr (kHalves) {
        *reinterpret_cast<uint2*>(head + 4 * l) = a;
        *reinterpret_cast<uint2*>(head + 4 * l + kDim / 2) = b;
    } else {
        *reinterpret_cast<uint4*>(head + 8 * l) = make_uint4(a.x, a.y, b.x, b.y);
    }
}

__device__ __forceinline__ float squares_of(const Eight& v) {
    return ((v.a.x * v.a.x + v.a.y * v.a.y) + (v.a.z * v.a.z + v.a.w * v.a.w)) +
           ((v.b.x * v.b.x + v.b.y * v.b.y) + (v.b.z * v.b.z + v.b.w * v.b.w));
}

__device__ __forceinline__ void turn_pair(float& a, float& b, float cos, float sin) {
    const float x = a * cos - b * sin;
    b = b * cos + a * sin;
    a = x;
}

// The pairs' angles are 4 l and on in either order of pairs.
template <bool kHalves>
__device__ __forceinline__ void turn_eight(Eight& v, const Eight& gain, float inverse, float4 cos,
                                           float4 sin) {
    v.a = make_float4(v.a.x * inverse * gain.a.x, v.a.y * inverse * gain.a.y,
                      v.a.z * inverse * gain.a.z, v.a.w * inverse * gain.a.w);
    v.b = make_float4(v.b.x * inverse * gain.b.x, v.b.y * inverse * gain.b.y,
                      v.b.z * inverse * gain.b.z, v.b.w * inverse * gain.b.w);
    if constexpr (kHalves) {
        turn_pair(v.a.x, v.b.x, cos.x, sin.x), turn_pair(v.a.y, v.b.y, cos.y, sin.y);
        turn_pair(v.a.z, v.b.z, cos.z, sin.z), turn_pair(v.a.w, v.b.w, cos.w, sin.w);
    } else {
        turn_pair(v.a.x, v.a.y, cos.x, sin.x), turn_pair(v.a.z, v.a.w, cos.y, sin.y);
        turn_pair(v.b.x, v.b.y, cos.z, sin.z), turn_pair(v.b.z, v.b.w, cos.w, sin.w);
    }
}

// A warp takes `chunks` of them in turn, those of `other` behind those of p.
template <typename T, bool kHalves>
__global__ void __launch_bounds__(kWarps* kWarp)
    heads_of_128_kernel(Heads<T> p, Heads<T> other, int chunks, int other_chunks, Turn turn) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, l = lane % 16;
    const int64_t s = unit / (chunks + other_chunks);
    int chunk = static_cast<int>(unit % (chunks + other_chunks));
    if (chunk >= chunks) p = other, chunk -= chunks;
    if (s >= p.rows) return;
    T* row = p.x + s * p.stride;
    const int first = chunk * kChunk + lane / 16;
    Eight v[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
        v[i] =
            first + 2 * i < p.heads ? get_eight<kHalves>(row + (first + 2 * i) * kDim, l) : Eight{};
    const float4 cos = four(turn.cos.row(s) + 4 * l, true),
                 sin = four(turn.sin.row(s) + 4 * l, true);
    const Eight gain = get_eight<kHalves>(p.gain, l);
    float squares[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
        squares[i] = squares_of(v[i]);
#pragma unroll
    for (int d = 1; d < 16; d *= 2)
#pragma unroll
        for (int i = 0; i < kRounds; ++i)
            squares[i] += __shfl_xor_sync(~0u, squares[i], d);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
        turn_eight<kHalves>(v[i], gain, rsqrtf(squares[i] * (1.0f / kDim) + turn.eps), cos, sin);
        if (first + 2 * i < p.heads) put_eight<kHalves>(row + (first + 2 * i) * kDim, l, v[i]);
    }
}

template <typename T> Heads<T> heads_of(const Tensor& x, const Tensor& gain, int head_dim) {
    return {static_cast<T*>(x.data), x.stride, gain.f32(), x.rows,
            static_cast<int>(x.cols / head_dim)};
}

// Whether all rows begin at multiples of 16 bytes.
bool whole_vectors(const Tensor& t) {
    return t.empty() || (row_bytes(t.dtype, t.stride) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(t.data) % 16 == 0);
}

template <typename T, bool kHalves> void launch(const Context& context, const HeadNormRopeArgs& a) {
    const Turn turn{rows_of(a.cos), rows_of(a.sin), a.head_dim, a.eps};
    const Heads<T> heads[2] = {heads_of<T>(a.x, a.gain, a.head_dim),
                               heads_of<T>(a.also, a.also_gain, a.head_dim)};
    const auto blocks = [](int64_t warps) {
        return static_cast<unsigned>((warps + kWarps - 1) / kWarps);
    };
    bool vectors = a.head_dim == kDim;
    for (const Tensor* t : {&a.x, &a.gain, &a.also, &a.also_gain, &a.cos, &a.sin})
        vectors = vectors && whole_vectors(*t);
    if (vectors) {
        const int chunks = (heads[0].heads + kChunk - 1) / kChunk,
                  others = (heads[1].heads + kChunk - 1) / kChunk;
        heads_of_128_kernel<T, kHalves>
            <<<blocks(a.x.rows * (chunks + others)), kWarps * kWarp, 0, context.stream>>>(
                heads[0], heads[1], chunks, others, turn);
        return;
    }
    for (const Heads<T>& h : heads)
        if (h.heads > 0)
            head_norm_rope_kernel<T, kHalves>
                <<<blocks(h.rows * h.heads), kWarps * kWarp, 0, context.stream>>>(h, turn);
}

template <typename T> void launch(const Context& context, const HeadNormRopeArgs& args) {
    if (args.pairs == RopePairs::kHalves)
        launch<T, true>(context, args);
    else
        launch<T, false>(context, args);
}

} // namespace

Status head_norm_rope(const Context& context, const HeadNormRopeArgs& args) {
    if (args.x.dtype == DType::kF16)
        launch<__half>(context, args);
    else
        launch<float>(context, args);
    return check_launch("head_norm_rope");
}

} // namespace bonsai::cuda
