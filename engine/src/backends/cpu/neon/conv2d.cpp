// SPDX-License-Identifier: Apache-2.0
// conv2d: 3x3 or 1x1, stride 1, same size, channels last; input read through optional affine + SiLU
//         and optional nearest doubling.
// Layout: x [height * width, Cin] f32. Weight [Cout, kernel * kernel * Cin] f32, f16 or bf16, in
//         the order kernel row, kernel column, channel.
// Maths:  implicit product. With the input of a tile prepared in scratch (activation applied, zero
//         border), the numbers under a kernel row are kernel * Cin consecutive floats in the order
//         of a weight row. f32 sums over runs of at most kDepth products are added to out, which
//         starts as bias + add, in a fixed order: tiles and pieces do not change a result.
// Work:   a tile is the piece's rows x up to tile_width columns. For each 8 output channels and
//         each run, weights become a panel [run][8] that stays in L1, and all pixels of the tile
//         pass by, 8 at a time: 8 x 8 sums in registers.
// Roofline: 2 kDepth flop for 8 bytes of out read and written, 64 flop/B: bound by FMA. Unpacking a
//         weight costs about as much as 10 pixels' use of it; a tile has some hundreds.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu {
namespace {

using neon::kDepth;

constexpr int kPieceRows = 8;

// Columns of a tile: enough pixels to amortise unpacking, a prepared input of some 1.5 MB at most
// for ordinary widths.
int64_t tile_width(int64_t channels) {
    const int64_t columns = (int64_t{3} << 17) / ((kPieceRows + 2) * channels);
    return columns > 256 ? 256 : columns < 32 ? 32 : columns;
}

// A rectangle of the output, in pixels of the (doubled) image, and its input in scratch.
struct Tile {
    int64_t y, x;          // first pixel
    int64_t height, width; // in pixels
    int64_t pitch;         // floats of a prepared row: (width + kernel - 1) * Cin
    float* input;          // [height + kernel - 1][width + kernel - 1][Cin]
    float* panel;          // [kDepth][8]
};

// One pixel through affine and SiLU.
void activate(const float* x, const float* multiplier, const float* offset, int64_t channels,
              float* out) {
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4)
        vst1q_f32(out + c, silu4(vfmaq_f32(vld1q_f32(offset + c), vld1q_f32(x + c),
                                           vld1q_f32(multiplier + c))));
    const int64_t rest = channels - c;
    if (rest == 0) return;
    store_tail(out + c, rest,
               silu4(vfmaq_f32(load_tail(offset + c, rest), load_tail(x + c, rest),
                               load_tail(multiplier + c, rest))));
}

void prepare_input(const Conv2dArgs& args, const Tile& tile) {
    const int64_t channels = args.x.cols;
    const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
    const int border = args.kernel / 2;
    const int zoom = args.upsample ? 2 : 1;
    float* to = tile.input;
    for (int64_t y = tile.y - border; y < tile.y + tile.height + border; ++y) {
        for (int64_t x = tile.x - border; x < tile.x + tile.width + border; ++x, to += channels) {
            if (y < 0 || y >= args.height * zoom || x < 0 || x >= args.width * zoom) {
                memset(to, 0, bytes);
                continue;
            }
            const float* from = row_of(args.x, y / zoom * args.width + x / zoom);
            if (args.affine.data == nullptr)
                memcpy(to, from, bytes);
            else
                activate(from, row_of(args.affine, 0), row_of(args.affine, 1), channels, to);
        }
    }
}

// Where sums of up to 8 channels go.
struct Target {
    float* out;
    int64_t stride;
    int channels; // 1 to 8
};

// out += x w for R pixels, `step` floats apart, and 8 channels over n products.
template <int R>
void multiply_pixels(const float* x, int64_t step, const float* panel, int n,
                     const Target& target) {
    float32x4_t acc[R][2];
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = vdupq_n_f32(0.0f);
    multiply_add<R>(x, step, panel, n, acc);
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r) {
        float* to = target.out + r * target.stride;
        if (target.channels == kFloatPanel) {
            vst1q_f32(to, vaddq_f32(vld1q_f32(to), acc[r][0]));
            vst1q_f32(to + 4, vaddq_f32(vld1q_f32(to + 4), acc[r][1]));
            continue;
        }
        float sums[kFloatPanel];
        vst1q_f32(sums, acc[r][0]);
        vst1q_f32(sums + 4, acc[r][1]);
        for (int c = 0; c < target.channels; ++c)
            to[c] += sums[c];
    }
}

// out = bias + add, the value that sums start from.
void start_row(const Conv2dArgs& args, int64_t pixel) {
    const int64_t channels = args.out.cols;
    float* out = row_of(args.out, pixel);
    const float* bias = static_cast<const float*>(args.bias.data);
    const float* add = args.add.data == nullptr ? nullptr : row_of(args.add, pixel);
    for (int64_t c = 0; c < channels; ++c)
        out[c] = (bias == nullptr ? 0.0f : bias[c]) + (add == nullptr ? 0.0f : add[c]);
}

// Adds the products of one panel to all pixels of the tile; `offset` = first product within kernel
// row `ky`.
void multiply_panel(const Conv2dArgs& args, const Tile& tile, int ky, int64_t offset, int n,
                    int64_t channel) {
    const int64_t image_width = args.width * (args.upsample ? 2 : 1);
    const int64_t left = args.out.cols - channel;
    const int64_t step = args.x.cols;
    for (int64_t y = 0; y < tile.height; ++y) {
        const float* x = tile.input + (y + ky) * tile.pitch + offset;
        Target target = {row_of(args.out, (tile.y + y) * image_width + tile.x) + channel,
                         args.out.stride,
                         static_cast<int>(left < kFloatPanel ? left : kFloatPanel)};
        int64_t count = 0;
        for (int64_t column = 0; column < tile.width; column += count) {
            const int64_t rows = tile.width - column;
            count = rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
            const auto kernel = count == 8   ? multiply_pixels<8>
                                : count == 4 ? multiply_pixels<4>
                                : count == 2 ? multiply_pixels<2>
                                             : multiply_pixels<1>;
            kernel(x + column * step, step, tile.panel, n, target);
            target.out += count * args.out.stride;
        }
    }
}

void convolve_tile(const Conv2dArgs& args, const Tile& tile) {
    const int64_t image_width = args.width * (args.upsample ? 2 : 1);
    const int64_t row_products = args.kernel * args.x.cols;
    // Runs of equal length, so that none is very short.
    const int64_t runs = (row_products + kDepth - 1) / kDepth;
    const int64_t run = (row_products + runs - 1) / runs;
    prepare_input(args, tile);
    for (int64_t y = tile.y; y < tile.y + tile.height; ++y)
        for (int64_t x = tile.x; x < tile.x + tile.width; ++x)
            start_row(args, y * image_width + x);
    for (int64_t channel = 0; channel < args.out.cols; channel += kFloatPanel) {
        for (int ky = 0; ky < args.kernel; ++ky) {
            for (int64_t offset = 0; offset < row_products; offset += run) {
                const int n =
                    static_cast<int>(row_products - offset < run ? row_products - offset : run);
                neon::unpack_panel(args.weight, channel, ky * row_products + offset, n, tile.panel);
                multiply_panel(args, tile, ky, offset, n, channel);
            }
        }
    }
}

bool conv2d(const Conv2dArgs& args, Range out_rows, Scratch& scratch) {
    const int64_t channels = args.x.cols;
    const int64_t image_width = args.width * (args.upsample ? 2 : 1);
    const int64_t border2 = args.kernel - 1;
    const int64_t widest = tile_width(channels) < image_width ? tile_width(channels) : image_width;
    const int64_t panel_size = static_cast<int64_t>(kDepth) * kFloatPanel;
    const int64_t input_size = (kPieceRows + border2) * (widest + border2) * channels;
    auto* memory = static_cast<float*>(
        scratch.get(static_cast<size_t>(panel_size + input_size) * sizeof(float)));
    if (memory == nullptr) return false;
    Tile tile;
    tile.panel = memory;
    tile.input = memory + panel_size;
    for (tile.y = out_rows.begin; tile.y < out_rows.end; tile.y += kPieceRows) {
        tile.height = out_rows.end - tile.y < kPieceRows ? out_rows.end - tile.y : kPieceRows;
        for (tile.x = 0; tile.x < image_width; tile.x += widest) {
            tile.width = image_width - tile.x < widest ? image_width - tile.x : widest;
            tile.pitch = (tile.width + border2) * channels;
            convolve_tile(args, tile);
        }
    }
    return true;
}

} // namespace

void overlay_neon_conv(KernelTable& table) {
    table.conv2d = conv2d;
    table.conv2d_piece_rows = kPieceRows;
}

} // namespace bonsai::cpu
#endif
