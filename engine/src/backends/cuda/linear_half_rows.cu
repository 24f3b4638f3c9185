// SPDX-License-Identifier: Apache-2.0
// half_rows: x[m, k] as one or two 16-bit floats, for linear_half_hopper
// Layout:   x f32 rows with a stride; terms [M, K], 16 columns of K in the order of half_position.
// Maths:    f16: a row times the power of two that brings its largest magnitude into [2^13, 2^14),
//           undone by `inverse`; bf16: as it is. high = x to nearest, low = what that left: x is
//           kept to 2^-22 of itself (f16, but no closer than 2^-38 of the row's largest) or 2^-17.
//           A row that is not finite: with one term `inverse` is NaN, as int8 rows have it; with
//           two it is not scaled, and infinity leaves nothing.
// Work:     a block a row, held in registers up to 16384 columns.
// Roofline: reads 4 M K bytes, writes 2 M K a term; memory-bound.
#include "backends/cuda/linear_half.h"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/row_norm.cuh"

#include <cuda_bf16.h>

namespace bonsai::cuda {
namespace {

struct Out {
    uint16_t *high, *low;
    float* inverse;
};

// The largest of all threads, given to all.
__device__ uint32_t block_maximum(uint32_t value) {
    __shared__ uint32_t of_warps[kWarp];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const auto of_warp = [](uint32_t v) {
        for (int offset = kWarp / 2; offset > 0; offset /= 2)
            v = max(v, __shfl_xor_sync(~0u, v, offset));
        return v;
    };
    value = of_warp(value);
    if (lane == 0) of_warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    return of_warp(lane < static_cast<int>(blockDim.x) / kWarp ? of_warps[lane] : 0);
}

// A power of two and its inverse, both normal numbers.
struct Scale {
    float factor, inverse;
};
__device__ __forceinline__ Scale scale_of(uint32_t largest, bool terms_two) {
    const int exponent = static_cast<int>(largest >> 23);
    if (exponent == 255) return {1.0f, terms_two ? 1.0f : __int_as_float(0x7FC00000)};
    const int shift = max(exponent, 14) - 13; // field of the inverse
    return {__int_as_float((254 - shift) << 23), __int_as_float(shift << 23)};
}

template <bool kBrain> __device__ __forceinline__ uint32_t pack(float a, float b) {
    if constexpr (kBrain) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        return reinterpret_cast<const uint32_t&>(pair);
    } else {
        return pack_half(a, b);
    }
}
template <bool kBrain> __device__ __forceinline__ float2 unpack(uint32_t bits) {
    if constexpr (kBrain)
        return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u));
    else
        return __half22float2(reinterpret_cast<const __half2&>(bits));
}
// What `high` leaves of a and b.
template <bool kBrain> __device__ __forceinline__ uint32_t rest(float a, float b, uint32_t high) {
    const float2 near = unpack<kBrain>(high);
    return pack<kBrain>(fabsf(near.x) <= 3.4e38f ? a - near.x : 0.0f,
                        fabsf(near.y) <= 3.4e38f ? b - near.y : 0.0f);
}

// Four columns at once; N: as rows.cuh loads them.
template <int N, bool kBrain, int kTerms>
__device__ __forceinline__ void put(const Out& out, int64_t begin, int64_t pack_index,
                                    const Pack<N>& x, float factor) {
    const int64_t column = pack_index * N;
    const auto write = [&](int i, int64_t at) {
        const float a = x.v[i] * factor, b = x.v[i + 1] * factor;
        const uint32_t high = pack<kBrain>(a, b);
        *reinterpret_cast<uint32_t*>(out.high + begin + at) = high;
        if constexpr (kTerms == 2)
            *reinterpret_cast<uint32_t*>(out.low + begin + at) = rest<kBrain>(a, b, high);
    };
    if constexpr (N == 4) {
        write(0, half_position(column));
        write(2, half_position(column + 2));
    } else {
        const float a = x.v[0] * factor;
        const uint32_t high = pack<kBrain>(a, 0.0f);
        out.high[begin + half_position(column)] = static_cast<uint16_t>(high);
        if constexpr (kTerms == 2)
            out.low[begin + half_position(column)] =
                static_cast<uint16_t>(rest<kBrain>(a, 0.0f, high));
    }
}

template <int N, bool kHeld, bool kBrain, int kTerms>
__global__ void half_rows_kernel(Rows x, int64_t cols, Out out) {
    const int64_t packs = cols / N, begin = int64_t{blockIdx.x} * cols;
    RowCache<N, kHeld> row{x.row(blockIdx.x), {}};
    row.fill(packs);
    Scale scale = {1.0f, 1.0f};
    if constexpr (!kBrain) {
        uint32_t largest = 0;
        each_pack<kHeld>(packs, [&](int i, int64_t pack) {
            const Pack<N> v = row.get(i, pack);
#pragma unroll
            for (int j = 0; j < N; ++j)
                largest = max(largest, __float_as_uint(v.v[j]) & 0x7FFFFFFFu);
        });
        scale = scale_of(block_maximum(largest), kTerms == 2);
    }
    each_pack<kHeld>(packs, [&](int i, int64_t pack) {
        put<N, kBrain, kTerms>(out, begin, pack, row.get(i, pack), scale.factor);
    });
    if (threadIdx.x == 0) out.inverse[blockIdx.x] = scale.inverse;
}

template <int N, bool kBrain, int kTerms>
void launch(const Context& context, const Tensor& x, const HalfRows& to) {
    const Out out = {to.high, to.low, to.inverse};
    const auto rows = static_cast<unsigned>(x.rows);
    const int threads = row_threads(x.cols / N);
    if (threads > 0)
        half_rows_kernel<N, true, kBrain, kTerms>
            <<<rows, threads, 0, context.stream>>>(rows_of(x), x.cols, out);
    else
        half_rows_kernel<N, false, kBrain, kTerms>
            <<<rows, 1024, 0, context.stream>>>(rows_of(x), x.cols, out);
}

template <int N> void launch_terms(const Context& context, const Tensor& x, const HalfRows& to) {
    if (to.brain)
        launch<N, true, 2>(context, x, to);
    else if (to.low)
        launch<N, false, 2>(context, x, to);
    else
        launch<N, false, 1>(context, x, to);
}

} // namespace

uint64_t half_rows_bytes(const Tensor& x, HalfKind kind) {
    const uint64_t terms = kind == HalfKind::kOne ? 1 : 2;
    return terms * sizeof(uint16_t) * static_cast<uint64_t>(x.rows * x.cols) +
           sizeof(float) * static_cast<uint64_t>(scale_stride_of(x.rows));
}

Status half_rows(const Context& context, const Tensor& x, HalfKind kind, HalfRows* out) {
    out->rows = x.rows, out->cols = x.cols;
    out->brain = kind == HalfKind::kBrainPairs;
    out->low = nullptr;
    const auto count = static_cast<size_t>(x.rows * x.cols);
    BONSAI_TRY(context.scratch->get(count, &out->high));
    if (kind != HalfKind::kOne) BONSAI_TRY(context.scratch->get(count, &out->low));
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(scale_stride_of(x.rows)), &out->inverse));
    if (vectors_of_four(x))
        launch_terms<4>(context, x, *out);
    else
        launch_terms<1>(context, x, *out);
    return check_launch("linear: half_rows");
}

} // namespace bonsai::cuda
