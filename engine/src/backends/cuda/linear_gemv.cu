// SPDX-License-Identifier: Apache-2.0
// linear_gemv: y[M,N] = x[M,K] W[N,K]^T for at most four tokens, f32 x, W of any type
// Layout:   as linear_exact.
// Maths:    f32 products and sums; partial sums of a row are added in a fixed order.
// Work:     a block owns 16 features. Block types: a warp takes every eighth unit of the slab, a
//           lane its two rows (weight_layout.h). Float types: a warp takes two rows, a lane every
//           32nd quad.
// Roofline: every weight is read once: memory-bound, 4 M operations over 1 (Q8_0) to 4 bytes.
#include "backends/cuda/linear.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kWarps = 8;

struct Rows {
    const float* data;
    int64_t stride;
    int rows;
    int64_t cols;
    bool aligned;        // four columns of x may be read at once
    bool weight_aligned; // and of W
};

__device__ __forceinline__ float4 x_quad(const Rows& x, int m, int64_t col) {
    const float* at = x.data + m * x.stride + col;
    if (x.aligned && col + 4 <= x.cols) return *reinterpret_cast<const float4*>(at);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        v[i] = col + i < x.cols ? at[i] : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Sums over K of two rows and all tokens, spread over lanes and warps.
template <DType kType>
__device__ __forceinline__ void slab_sums(const Part& part, const Rows& x, int slab, int warp,
                                          int lane, float (&sum)[2][kGemvRows]) {
    using Type = SlabType<kType>;
    const int units = static_cast<int>(x.cols / Type::kBlock);
    const uint8_t* base = part.weight + static_cast<int64_t>(slab) * units * kSlabUnitBytes<kType>;
    for (int u = warp; u < units; u += kWarps) {
        LaneUnit<kType> unit;
        load_unit<kType>(base + static_cast<int64_t>(u) * kSlabUnitBytes<kType>, lane, unit);
        const float2 d = scale_pair(unit.scales), offset = scale_pair(unit.offsets);
#pragma unroll
        for (int s = 0; s < Type::kBlock / 32; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t word = operand_word<kType>(unit.codes, s, i);
                const float scale = (i & 1 ? d.y : d.x) * (1.0f / Type::kFactor);
                const float m0 = Type::kOffset ? (i & 1 ? offset.y : offset.x) : 0.0f;
                const auto value = [&](int b) {
                    return fmaf(scale, static_cast<float>(static_cast<int8_t>(word >> 8 * b & 255)),
                                m0);
                };
                const float4 w = make_float4(value(0), value(1), value(2), value(3));
                const int64_t col = static_cast<int64_t>(u) * Type::kBlock + 32 * s +
                                    16 * (i >> 1) + 4 * (lane & 3);
#pragma unroll
                for (int m = 0; m < kGemvRows; ++m)
                    if (m < x.rows) sum[i & 1][m] = dot(w, x_quad(x, m, col), sum[i & 1][m]);
            }
    }
}

template <DType kType>
__device__ __forceinline__ void row_sums(const Part& part, const Rows& x, int first_row, int lane,
                                         float (&sum)[2][kGemvRows]) {
    for (int64_t col = 4 * lane; col < x.cols; col += 128)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t row = first_row + h;
            if (row >= part.rows) continue;
            const float4 w = x.weight_aligned ? aligned_quad<kType>(part.weight, row * x.cols + col)
                                              : weight_values(kType, part.weight, x.cols, row, col);
#pragma unroll
            for (int m = 0; m < kGemvRows; ++m)
                if (m < x.rows) sum[h][m] = dot(w, x_quad(x, m, col), sum[h][m]);
        }
}

template <DType kType>
__global__ void __launch_bounds__(32 * kWarps)
    gemv_kernel(const __grid_constant__ Parts parts, const __grid_constant__ Rows x) {
    constexpr bool kSlab = kType != DType::kF32 && kType != DType::kF16 && kType != DType::kBF16;
    __shared__ float partial[kSlab ? kWarps : 1][kSlabRows][kGemvRows];
    const Part& part = part_of(parts, static_cast<int>(blockIdx.x));
    const int tile = static_cast<int>(blockIdx.x) - part.first_tile;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float sum[2][kGemvRows] = {};
    if constexpr (kSlab)
        slab_sums<kType>(part, x, tile, warp, lane, sum);
    else
        row_sums<kType>(part, x, tile * kSlabRows + 2 * warp, lane, sum);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int m = 0; m < kGemvRows; ++m) {
#pragma unroll
            for (int d = 1; d < (kSlab ? 4 : 32); d <<= 1)
                sum[h][m] += __shfl_xor_sync(~0u, sum[h][m], d);
            if constexpr (kSlab) {
                if ((lane & 3) == 0) partial[warp][(lane >> 2) + 8 * h][m] = sum[h][m];
            } else {
                if (lane == 0) partial[0][2 * warp + h][m] = sum[h][m];
            }
        }
    __syncthreads();
    const int row = threadIdx.x / kGemvRows;
    const int64_t m = threadIdx.x % kGemvRows;
    const int n = tile * kSlabRows + row;
    if (row >= kSlabRows || m >= x.rows || n >= part.rows) return;
    float y = partial[0][row][m];
    for (int w = 1; w < (kSlab ? kWarps : 1); ++w)
        y += partial[w][row][m];
    store_feature<1>(part, n, x.rows, m, [](int) { return 0; }, [&](int) { return y; });
}

template <DType kType> void launch(const Context& context, const Parts& parts, const Rows& x) {
    gemv_kernel<kType>
        <<<static_cast<unsigned>(parts.tiles), 32 * kWarps, 0, context.stream>>>(parts, x);
}

} // namespace

Status linear_gemv(const Context& context, const LinearArgs& args, unsigned mask) {
    const Parts parts = make_parts(args, mask, kSlabRows);
    Rows x;
    x.data = args.x.f32();
    x.stride = args.x.stride;
    x.rows = static_cast<int>(args.x.rows);
    x.cols = args.x.cols;
    x.aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0;
    x.weight_aligned = x.cols % 4 == 0;
    for (int i = 0; i < parts.count; ++i)
        if (reinterpret_cast<uintptr_t>(parts.part[i].weight) % 16 != 0) x.weight_aligned = false;
    BONSAI_TRY(for_weight_type(
        parts.dtype, [&](auto type) { launch<decltype(type)::value>(context, parts, x); }));
    return check_launch("linear_gemv");
}

} // namespace bonsai::cuda
