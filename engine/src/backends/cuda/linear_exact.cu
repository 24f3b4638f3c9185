// SPDX-License-Identifier: Apache-2.0
// linear_exact: y[M,N] = x[M,K] W[N,K]^T with f32 x and W of any type, accurate as f32 sums
// Layout:   x, y f32 rows with a stride; W in the file's rows (float types) or weight_layout.h.
// Maths:    x and W as sums of two bf16 each, a = high + low with |a - high - low| <= 2^-17 |a|;
//           y = high high + high low + low high, f32 sums: 1e-5 of |x| |W|, whatever their range.
//           Binary and ternary W are the sum exactly. Any K; columns past it count as zero.
// Work:     a block owns 128 features x 64 tokens of y, a warp 32 x 32; stages of K = 32, split on
//           the way from registers to shared memory while the stage before is multiplied. Where
//           the tiles are few, several blocks share the stages of one, and a second kernel adds
//           what they leave, in the order of K.
// Roofline: three products on tensor cores for one; compute-bound beyond some 100 tokens.
#include <algorithm>

#include "backends/cuda/linear.cuh"

namespace bonsai::cuda {
namespace {

constexpr int kTileRows = 128, kTileTokens = 64, kTileK = 32, kThreads = 256;
constexpr int kRowBytes = kTileK * 2; // of one bf16 half of a row of a tile
constexpr int kWBytes = kTileRows * kRowBytes, kXBytes = kTileTokens * kRowBytes;
constexpr int kStageBytes = 2 * (kWBytes + kXBytes); // W high, W low, x high, x low
// Quads of columns that a thread carries to shared memory.
constexpr int kWQuads = kTileRows * kTileK / 4 / kThreads;
constexpr int kXQuads = kTileTokens * kTileK / 4 / kThreads;

// d += a b: 16 features x 8 tokens x 16 of K.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else // no bf16 there: each lane gathers its rows and columns from the lanes that hold them
    const int lane = threadIdx.x & 31, r = lane >> 2, q = lane & 3;
    const auto low = [](uint32_t v) { return __uint_as_float(v << 16); };
    const auto high = [](uint32_t v) { return __uint_as_float(v & 0xFFFF0000u); };
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        uint32_t rows[4], columns[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            rows[i] = __shfl_sync(~0u, a[i], 4 * r + s);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            columns[e][0] = __shfl_sync(~0u, b0, 4 * (2 * q + e) + s);
            columns[e][1] = __shfl_sync(~0u, b1, 4 * (2 * q + e) + s);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t w = rows[(i >> 1) + 2 * h], x = columns[i & 1][h];
                d[i] = fmaf(low(w), low(x), fmaf(high(w), high(x), d[i]));
            }
    }
#endif
}

// Two floats as bf16 pairs: high parts and what they leave.
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
    const auto bits = [](float v) {
        return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(v)));
    };
    const uint32_t ha = bits(a), hb = bits(b);
    high = ha | hb << 16;
    // A value that is not finite must not become one: infinity leaves nothing, not a NaN.
    const auto rest = [&](float v, uint32_t h) {
        const float near = __uint_as_float(h << 16);
        return fabsf(near) <= 3.4e38f ? v - near : 0.0f;
    };
    low = bits(rest(a, ha)) | bits(rest(b, hb)) << 16;
}

// Byte address of quad `quad` (4 columns, 8 bytes) of a tile's row: 16-byte pieces swizzled so that
// eight rows of a matrix lie in eight banks of 16 bytes.
__device__ __forceinline__ int quad_address(int row, int quad) {
    return row * kRowBytes + (((quad >> 1) ^ (row >> 1 & 3)) << 4) + 8 * (quad & 1);
}

struct Rows {
    const float* data;
    int64_t stride, rows, cols;
    bool aligned;        // quads may be read at once
    bool weight_aligned; // and of float weights
    int splits;          // blocks that share a tile
    float* partial;      // [splits, rows, tiles of features * 128] where more than one
    __device__ __forceinline__ float4 quad(int64_t row, int64_t col) const {
        if (row >= rows) return make_float4(0, 0, 0, 0);
        const float* at = data + row * stride + col;
        if (aligned && col + 4 <= cols) return *reinterpret_cast<const float4*>(at);
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            v[i] = col + i < cols ? at[i] : 0.0f;
        return make_float4(v[0], v[1], v[2], v[3]);
    }
};

// Four weights of a row; a type fixed at compile time leaves one case of the switch.
template <DType kType>
__device__ __forceinline__ float4 weights(const Part& part, const Rows& x, int64_t row,
                                          int64_t col) {
    if (row >= part.rows || col >= x.cols) return make_float4(0, 0, 0, 0);
    if constexpr (kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBF16)
        if (x.weight_aligned) return aligned_quad<kType>(part.weight, row * x.cols + col);
    return weight_values(kType, part.weight, x.cols, row, col);
}

template <DType kType> class Tile {
  public:
    __device__ Tile(const Part& part, const Rows& x, int first_row, int first_token,
                    uint8_t* shared)
        : part_(part), x_(x), shared_(shared), first_row_(first_row), first_token_(first_token),
          lane_(threadIdx.x & 31), row_(32 * (threadIdx.x >> 6)),
          column_(32 * (threadIdx.x >> 5 & 1)) {}

    // Stages of split `split`.
    __device__ __forceinline__ void run(int split) {
        const int stages = static_cast<int>((x_.cols + kTileK - 1) / kTileK);
        const int end = stages * (split + 1) / x_.splits;
        int s = stages * split / x_.splits;
        fetch(s);
        put(s);
        for (; s < end; ++s) {
            __syncthreads();
            if (s + 1 < end) fetch(s + 1);
            multiply_stage(shared_ + (s & 1) * kStageBytes);
            if (s + 1 < end) put(s + 1);
        }
    }

    // Sums without bias and gate, for add_kernel. column: of the tile in all parts' columns.
    __device__ __forceinline__ void store_partial(int split, int column, int columns) const {
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int h = i >> 3, j = i >> 1 & 3, e = i & 1;
                const int64_t m = first_token_ + column_ + 8 * j + 2 * (lane_ & 3) + e;
                const int n = column + row_ + 16 * t + 8 * h + (lane_ >> 2);
                if (m < x_.rows)
                    x_.partial[(split * x_.rows + m) * columns + n] = sum_[t][j][2 * h + e];
            }
    }

    __device__ __forceinline__ void store() const {
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int n = first_row_ + row_ + 16 * t + 8 * h + (lane_ >> 2);
                const int64_t first = first_token_ + column_ + 2 * (lane_ & 3);
                store_feature<8>(
                    part_, n, x_.rows, first, [](int i) { return 8 * (i >> 1) + (i & 1); },
                    [&](int i) { return sum_[t][i >> 1][2 * h + (i & 1)]; });
            }
    }

  private:
    __device__ __forceinline__ void fetch(int s) {
#pragma unroll
        for (int i = 0; i < kWQuads; ++i) {
            const int at = i * kThreads + threadIdx.x;
            w_next_[i] = weights<kType>(part_, x_, first_row_ + (at >> 3),
                                        static_cast<int64_t>(s) * kTileK + 4 * (at & 7));
        }
#pragma unroll
        for (int i = 0; i < kXQuads; ++i) {
            const int at = i * kThreads + threadIdx.x;
            x_next_[i] =
                x_.quad(first_token_ + (at >> 3), static_cast<int64_t>(s) * kTileK + 4 * (at & 7));
        }
    }

    __device__ __forceinline__ static void put_quad(uint8_t* high, uint8_t* low, int at,
                                                    const float4& v) {
        uint2 h, l;
        split(v.x, v.y, h.x, l.x);
        split(v.z, v.w, h.y, l.y);
        const int address = quad_address(at >> 3, at & 7);
        *reinterpret_cast<uint2*>(high + address) = h;
        *reinterpret_cast<uint2*>(low + address) = l;
    }

    __device__ __forceinline__ void put(int s) {
        uint8_t* stage = shared_ + (s & 1) * kStageBytes;
        uint8_t* x = stage + 2 * kWBytes;
#pragma unroll
        for (int i = 0; i < kWQuads; ++i)
            put_quad(stage, stage + kWBytes, i * kThreads + threadIdx.x, w_next_[i]);
#pragma unroll
        for (int i = 0; i < kXQuads; ++i)
            put_quad(x, x + kXBytes, i * kThreads + threadIdx.x, x_next_[i]);
    }

    // Matrices of a tile whose rows begin at `row`, K step `step`. The first two matrices differ in
    // the row where `rows_first`, else in the column.
    __device__ __forceinline__ void load(uint32_t (&out)[4], const uint8_t* tile, int row, int step,
                                         bool rows_first) const {
        const int matrix = lane_ >> 3;
        const int down = rows_first ? matrix & 1 : matrix >> 1;
        const int right = rows_first ? matrix >> 1 : matrix & 1;
        load_matrices(out, shared_address(tile) +
                               quad_address(row + 8 * down + (lane_ & 7), 2 * (2 * step + right)));
    }

    __device__ __forceinline__ void multiply_stage(const uint8_t* stage) {
        const uint8_t* x = stage + 2 * kWBytes;
#pragma unroll
        for (int step = 0; step < kTileK / 16; ++step) {
            uint32_t w_high[2][4], w_low[2][4];
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                load(w_high[t], stage, row_ + 16 * t, step, true);
                load(w_low[t], stage + kWBytes, row_ + 16 * t, step, true);
            }
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t x_high[4], x_low[4];
                load(x_high, x, column_ + 8 * j, step, false);
                load(x_low, x + kXBytes, column_ + 8 * j, step, false);
#pragma unroll
                for (int t = 0; t < 2; ++t)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        multiply(sum_[t][j + e], w_low[t], x_high[2 * e], x_high[2 * e + 1]);
                        multiply(sum_[t][j + e], w_high[t], x_low[2 * e], x_low[2 * e + 1]);
                        multiply(sum_[t][j + e], w_high[t], x_high[2 * e], x_high[2 * e + 1]);
                    }
            }
        }
    }

    const Part& part_;
    const Rows& x_;
    uint8_t* shared_;
    int first_row_, first_token_, lane_, row_, column_;
    float4 w_next_[kWQuads], x_next_[kXQuads];
    float sum_[2][4][4] = {};
};

template <DType kType>
__global__ void __launch_bounds__(kThreads)
    exact_kernel(const __grid_constant__ Parts parts, const __grid_constant__ Rows x) {
    __shared__ __align__(128) uint8_t shared[2 * kStageBytes];
    const int tile = static_cast<int>(blockIdx.y);
    const Part& part = part_of(parts, tile);
    Tile<kType> work(part, x, (tile - part.first_tile) * kTileRows,
                     static_cast<int>(blockIdx.x) * kTileTokens, shared);
    work.run(static_cast<int>(blockIdx.z));
    if (x.splits == 1)
        work.store();
    else
        work.store_partial(static_cast<int>(blockIdx.z), tile * kTileRows, parts.tiles * kTileRows);
}

// What the splits of a tile left, a feature a thread.
__global__ void __launch_bounds__(kTileRows)
    add_kernel(const __grid_constant__ Parts parts, const __grid_constant__ Rows x) {
    const int tile = static_cast<int>(blockIdx.y), columns = parts.tiles * kTileRows;
    const Part& part = part_of(parts, tile);
    const int64_t m = blockIdx.x;
    float y = 0;
    for (int split = 0; split < x.splits; ++split)
        y += x.partial[(split * x.rows + m) * columns + tile * kTileRows + threadIdx.x];
    const int n = (tile - part.first_tile) * kTileRows + static_cast<int>(threadIdx.x);
    store_feature<1>(part, n, x.rows, m, [](int) { return 0; }, [&](int) { return y; });
}

template <DType kType> void launch(const Context& context, const Parts& parts, const Rows& x) {
    const dim3 grid(static_cast<unsigned>((x.rows + kTileTokens - 1) / kTileTokens),
                    static_cast<unsigned>(parts.tiles), static_cast<unsigned>(x.splits));
    exact_kernel<kType><<<grid, kThreads, 0, context.stream>>>(parts, x);
}

// Blocks that share a tile: enough for two on a multiprocessor, with 4 stages each at least.
int splits_of(const Context& context, const Parts& parts, int64_t rows, int64_t cols) {
    const int64_t tiles = (rows + kTileTokens - 1) / kTileTokens * parts.tiles;
    const int64_t wanted = 2 * context.multiprocessors / std::max<int64_t>(tiles, 1);
    return static_cast<int>(
        std::max<int64_t>(1, std::min<int64_t>({wanted, cols / (4 * kTileK), 16})));
}

size_t partial_count(int splits, int64_t rows, const Parts& parts) {
    return static_cast<size_t>(splits * rows * parts.tiles * kTileRows);
}

} // namespace

uint64_t exact_scratch(const Context& context, const LinearArgs& args, unsigned mask) {
    const Parts parts = make_parts(args, mask, kTileRows);
    const int splits = splits_of(context, parts, args.x.rows, args.x.cols);
    return splits > 1 ? partial_count(splits, args.x.rows, parts) * sizeof(float) : 0;
}

Status linear_exact(const Context& context, const LinearArgs& args, unsigned mask) {
    const Parts parts = make_parts(args, mask, kTileRows);
    Rows x;
    x.data = args.x.f32();
    x.stride = args.x.stride;
    x.rows = args.x.rows;
    x.cols = args.x.cols;
    x.aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0;
    x.weight_aligned = x.cols % 4 == 0;
    for (int i = 0; i < parts.count; ++i)
        if (reinterpret_cast<uintptr_t>(parts.part[i].weight) % 16 != 0) x.weight_aligned = false;
    x.splits = splits_of(context, parts, x.rows, x.cols);
    x.partial = nullptr;
    if (x.splits > 1)
        BONSAI_TRY(context.scratch->get(partial_count(x.splits, x.rows, parts), &x.partial));
    BONSAI_TRY(for_weight_type(
        parts.dtype, [&](auto type) { launch<decltype(type)::value>(context, parts, x); }));
    if (x.splits > 1)
        add_kernel<<<dim3(static_cast<unsigned>(x.rows), static_cast<unsigned>(parts.tiles)),
                     kTileRows, 0, context.stream>>>(parts, x);
    return check_launch("linear_exact");
}

} // namespace bonsai::cuda
