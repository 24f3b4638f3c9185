// SPDX-License-Identifier: Apache-2.0
// conv2d: 3x3 or 1x1, stride 1, same size, channels last; input read through optional affine + SiLU
//         and optional nearest doubling.
// Layout: x [height * width, Cin] f32. Weight [Cout, kernel * kernel * Cin] f32, f16 or bf16, in
//         the order kernel row, kernel column, channel.
// Maths:  reference: the `kernel` input rows of an output row are prepared in scratch with a zero
//         border, so that a kernel row meets kernel * Cin consecutive numbers; sums in double.
#include <cmath>
#include <cstring>

#include "backends/cpu/table.h"
#include "core/half.h"

namespace bonsai::cpu {

static float weight_at(DType dtype, const uint8_t* row, int64_t i) {
    if (dtype == DType::kF32) {
        float value;
        std::memcpy(&value, row + 4 * i, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, row + 2 * i, 2);
    return dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
}

// Row `y` of the (doubled) input with `border` zero pixels on both sides; rows outside the image
// are all zero.
static void prepare_row(const Conv2dArgs& args, int64_t y, int border, float* row) {
    const int64_t channels = args.x.cols;
    const int zoom = args.upsample ? 2 : 1;
    const int64_t width = args.width * zoom;
    std::memset(row, 0, (width + 2 * border) * channels * sizeof(float));
    if (y < 0 || y >= args.height * zoom) return;
    for (int64_t column = 0; column < width; ++column) {
        const float* x = args.x.row(y / zoom * args.width + column / zoom);
        float* to = row + (column + border) * channels;
        for (int64_t c = 0; c < channels; ++c) {
            to[c] = x[c];
            if (!args.affine.empty()) {
                const double value =
                    static_cast<double>(args.affine.row(0)[c]) * x[c] + args.affine.row(1)[c];
                to[c] = static_cast<float>(value / (1.0 + std::exp(-value)));
            }
        }
    }
}

// One output channel of one output row. `rows` holds the prepared input rows one after another.
static void convolve_row(const Conv2dArgs& args, const float* rows, const float* weight, int64_t y,
                         int64_t channel) {
    const int64_t width = args.width * (args.upsample ? 2 : 1);
    const int64_t run = args.kernel * args.x.cols;
    const int64_t row_length = (width + args.kernel - 1) * args.x.cols;
    for (int64_t column = 0; column < width; ++column) {
        double sum = args.bias.empty() ? 0.0 : args.bias.f32()[channel];
        for (int ky = 0; ky < args.kernel; ++ky) {
            const float* x = rows + ky * row_length + column * args.x.cols;
            const float* w = weight + ky * run;
            for (int64_t i = 0; i < run; ++i)
                sum += static_cast<double>(x[i]) * w[i];
        }
        const int64_t pixel = y * width + column;
        if (!args.add.empty()) sum += args.add.row(pixel)[channel];
        args.out.row(pixel)[channel] = static_cast<float>(sum);
    }
}

static bool conv2d(const Conv2dArgs& args, Range out_rows, Scratch& scratch) {
    const int border = args.kernel / 2;
    const int64_t width = args.width * (args.upsample ? 2 : 1);
    const int64_t row_length = (width + 2 * border) * args.x.cols;
    auto* rows = static_cast<float*>(
        scratch.get((args.kernel * row_length + args.weight.cols) * sizeof(float)));
    if (rows == nullptr) return false;
    float* weight = rows + args.kernel * row_length;
    for (int64_t y = out_rows.begin; y < out_rows.end; ++y) {
        for (int ky = 0; ky < args.kernel; ++ky)
            prepare_row(args, y + ky - border, border, rows + ky * row_length);
        for (int64_t channel = 0; channel < args.weight.rows; ++channel) {
            const uint8_t* packed = args.weight.packed_row(channel);
            for (int64_t i = 0; i < args.weight.cols; ++i)
                weight[i] = weight_at(args.weight.dtype, packed, i);
            convolve_row(args, rows, weight, y, channel);
        }
    }
    return true;
}

void overlay_generic_conv(KernelTable& table) {
    table.conv2d = conv2d;
    table.conv2d_piece_rows = 4;
}

} // namespace bonsai::cpu
