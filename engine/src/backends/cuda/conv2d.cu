// SPDX-License-Identifier: Apache-2.0
// conv2d: 3x3 or 1x1, stride 1, same size; input through optional affine + SiLU, then optional
//         nearest doubling; optional bias and add.
// Layout:   x, add, out channels last, f32, row stride; weight OHWI, f32, f16 or bf16.
// Maths:    operands rounded to f16, sums in f32. Inputs that no norm bounds are first scaled by a
//           power of two found from their largest magnitude, so that f16 always holds them.
// Work:     a band of lines is rounded into scratch with a border of zero pixels; over that image
//           the convolution is a matrix product whose rows are pixels, read at nine offsets (see
//           shift_gemm.h). The last two pixels of a bordered line yield nothing: 2 / width waste.
// Roofline: 2 * P * Cout * 9 * Cin flop; the rounding reads 4 and writes 2 bytes a number. 512 ->
//           512 at 128 x 128: 77 GFLOP, 100 MB: compute-bound; 128 -> 3: bound by the rounding.
#include <algorithm>

#include "backends/cuda/half_rows.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/shift_gemm.h"

namespace bonsai::cuda {

constexpr int64_t kBandBytes = int64_t{96} << 20; // of rounded input at a time

namespace {

struct Staging {
    const float* x;
    int64_t x_stride;
    const float* multiplier; // null without affine
    const float* offset;
    const uint32_t* largest; // bits of max |x|, null: no scaling
    float* alpha;            // takes 1 / scale
    __half* out;             // [lines * pitch, padded_channels]
    int channels, padded_channels;
    int width, height; // of the (doubled) image
    int first_line;    // of the image; lines outside it are zero
    int lines, pitch, border, zoom;
};

} // namespace

// Eight channels from c on, as f16.
template <bool kVector>
__device__ __forceinline__ uint4 staged_piece(const Staging& s, const float* x, int c,
                                              float scale) {
    float v[8];
    if constexpr (kVector) {
        const float4 low = *reinterpret_cast<const float4*>(x + c);
        const float4 high = *reinterpret_cast<const float4*>(x + c + 4);
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            v[i] = c + i < s.channels ? x[c + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (s.multiplier != nullptr && (kVector || c + i < s.channels))
            v[i] = silu_of(fmaf(s.multiplier[c + i], v[i], s.offset[c + i]));
        v[i] *= scale;
    }
    return make_uint4(pack_clamped(v[0], v[1]), pack_clamped(v[2], v[3]), pack_clamped(v[4], v[5]),
                      pack_clamped(v[6], v[7]));
}

template <bool kVector> static __global__ void __launch_bounds__(256) stage_kernel(Staging s) {
    const int pieces = s.padded_channels / 8;
    const int64_t index = int64_t{blockIdx.x} * 256 + threadIdx.x;
    const float scale = s.largest != nullptr ? range_scale(__uint_as_float(*s.largest)) : 1.0f;
    if (index == 0) *s.alpha = 1.0f / scale;
    const int64_t row = index / pieces;
    if (row >= int64_t{s.lines} * s.pitch) return;
    const int c = static_cast<int>(index - row * pieces) * 8;
    const int line = static_cast<int>(row / s.pitch);
    const int x = static_cast<int>(row - int64_t{line} * s.pitch) - s.border;
    const int y = s.first_line + line;
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (x >= 0 && x < s.width && y >= 0 && y < s.height && c < s.channels) {
        const int64_t pixel = int64_t{y / s.zoom} * (s.width / s.zoom) + x / s.zoom;
        piece = staged_piece<kVector>(s, s.x + pixel * s.x_stride, c, scale);
    }
    reinterpret_cast<uint4*>(s.out)[index] = piece;
}

static Status stage(const Context& context, const Staging& s) {
    const int64_t count = int64_t{s.lines} * s.pitch * (s.padded_channels / 8);
    const auto grid = static_cast<unsigned>((count + 255) / 256);
    const bool vector =
        s.channels % 8 == 0 && s.x_stride % 4 == 0 && reinterpret_cast<uintptr_t>(s.x) % 16 == 0;
    if (vector)
        stage_kernel<true><<<grid, 256, 0, context.stream>>>(s);
    else
        stage_kernel<false><<<grid, 256, 0, context.stream>>>(s);
    return check_launch("conv2d input");
}

static Staging describe_input(const Conv2dArgs& args) {
    Staging s = {};
    s.x = args.x.f32(), s.x_stride = args.x.stride;
    if (!args.affine.empty()) s.multiplier = args.affine.row(0), s.offset = args.affine.row(1);
    s.channels = static_cast<int>(args.x.cols);
    s.padded_channels = static_cast<int>(round_up(args.x.cols, kChunk));
    s.zoom = args.zoom();
    s.width = static_cast<int>(args.width) * s.zoom;
    s.height = static_cast<int>(args.height) * s.zoom;
    s.border = args.kernel / 2;
    s.pitch = s.width + 2 * s.border;
    return s;
}

static ShiftGemm describe_product(const Conv2dArgs& args, const Staging& s) {
    ShiftGemm gemm;
    gemm.n = static_cast<int>(args.weight.rows);
    gemm.channels = s.padded_channels;
    gemm.taps = args.kernel * args.kernel;
    gemm.pitch = s.pitch, gemm.width = s.width;
    if (!args.bias.empty()) gemm.bias = args.bias.f32();
    gemm.adds = !args.add.empty();
    gemm.add_stride = args.add.stride, gemm.out_stride = args.out.stride;
    return gemm;
}

namespace {

// How a convolution is cut into bands, and what it takes of scratch for them.
struct Bands {
    Staging input;
    ShiftGemm gemm;
    GemmPlan plan;
    int height, lines; // of the result; of a band
    size_t input_halves, weight_halves;
};

} // namespace

static Bands plan_bands(const Context& context, const Conv2dArgs& args) {
    Bands b = {};
    b.input = describe_input(args);
    const Staging& s = b.input;
    const int64_t line_bytes = int64_t{s.pitch} * s.padded_channels * 2;
    b.height = static_cast<int>(args.out_height());
    b.lines =
        static_cast<int>(std::clamp<int64_t>(kBandBytes / line_bytes - 2 * s.border, 1, b.height));
    b.gemm = describe_product(args, s);
    b.gemm.a_rows = int64_t{b.lines + 2 * s.border} * s.pitch + kRowSlack;
    b.gemm.rows = int64_t{b.lines - 1} * s.pitch + s.width;
    b.plan = plan_gemm(context, b.gemm);
    b.input_halves = static_cast<size_t>(b.gemm.a_rows * s.padded_channels);
    b.weight_halves = packed_halves(b.plan, b.gemm.n, args.x.cols, b.gemm.taps);
    return b;
}

uint64_t conv2d_scratch(const Context& context, const Conv2dArgs& args) {
    const Bands b = plan_bands(context, args);
    return (b.input_halves + b.weight_halves) * sizeof(__half);
}

Status conv2d(const Context& context, const Conv2dArgs& args) {
    Bands b = plan_bands(context, args);
    Staging& s = b.input;
    ShiftGemm& gemm = b.gemm;
    BONSAI_TRY(context.scratch->get(1, &s.alpha));
    if (args.affine.empty()) {
        uint32_t* largest = nullptr;
        BONSAI_TRY(context.scratch->get(1, &largest));
        BONSAI_TRY(absolute_maximum(context, args.x, largest));
        s.largest = largest;
    }
    __half* weights = nullptr;
    BONSAI_TRY(context.scratch->get(b.input_halves, &s.out));
    BONSAI_TRY(context.scratch->get(b.weight_halves, &weights));
    BONSAI_TRY(pack_weights(context, b.plan, args.weight, args.x.cols, gemm.taps, weights));
    gemm.a = s.out, gemm.b = weights, gemm.alpha = s.alpha;
    for (int line = 0; line < b.height; line += b.lines) {
        const int lines = std::min(b.lines, b.height - line);
        s.first_line = line + args.above * s.zoom - s.border, s.lines = lines + 2 * s.border;
        BONSAI_TRY(stage(context, s));
        gemm.rows = int64_t{lines - 1} * s.pitch + s.width;
        gemm.out = args.out.row(int64_t{line} * s.width);
        if (!args.add.empty()) gemm.add = args.add.row(int64_t{line} * s.width);
        BONSAI_TRY(shift_gemm(context, b.plan, gemm));
    }
    return Status();
}

} // namespace bonsai::cuda
