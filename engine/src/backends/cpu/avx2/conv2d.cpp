// SPDX-License-Identifier: Apache-2.0
// conv2d: 3x3 or 1x1, stride 1, same size, channels last; input read through optional affine + SiLU
//         and optional nearest doubling.
// Layout: x [height * width, Cin] f32. Weight [Cout, kernel * kernel * Cin] f32, f16 or bf16, in
//         the order kernel row, kernel column, channel.
// Maths:  implicit product. With the input of a tile prepared in scratch (activation applied, zero
//         border), the numbers under a kernel row are kernel * Cin consecutive floats in the order
//         of a weight row. f32 sums over runs of at most kRun products are added to out, which
//         starts as bias + add, in a fixed order: tiles and pieces do not change a result.
// Work:   a tile is the piece's rows x up to tile_width columns. For each 16 output channels and
//         each run, weights become a panel [run][16] that stays in L1, and all pixels of the tile
//         pass by, 6 at a time: 6 x 16 sums in registers.
// Roofline: 2 kRun flop for 8 bytes of out read and written, 64 flop/B: bound by FMA. Unpacking a
//         weight costs about as much as 10 pixels' use of it; a tile has some hundreds.
#include "backends/cpu/table.h"

#ifdef __AVX2__

#include <string.h>

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

constexpr int kPieceRows = 8;
constexpr int kPanel = 16; // output channels
constexpr int kRun = 256;  // products summed in registers; a panel of 16 KB
constexpr int kGroup6 = 6; // pixels of a register tile

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
    float* panel;          // [kRun][16]
};

// One pixel through affine and SiLU.
void activate(const float* x, const float* multiplier, const float* offset, int64_t channels,
              float* out) {
    int64_t c = 0;
    for (; c + 8 <= channels; c += 8)
        _mm256_storeu_ps(
            out + c, silu8(_mm256_fmadd_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(multiplier + c),
                                           _mm256_loadu_ps(offset + c))));
    if (c == channels) return;
    const __m256i mask = tail_mask(channels - c);
    _mm256_maskstore_ps(out + c, mask,
                        silu8(_mm256_fmadd_ps(_mm256_maskload_ps(x + c, mask),
                                              _mm256_maskload_ps(multiplier + c, mask),
                                              _mm256_maskload_ps(offset + c, mask))));
}

void prepare_input(const Conv2dArgs& args, const Tile& tile) {
    const int64_t channels = args.x.cols;
    const int border = args.kernel / 2;
    const int zoom = args.upsample ? 2 : 1;
    float* to = tile.input;
    for (int64_t y = tile.y - border; y < tile.y + tile.height + border; ++y) {
        for (int64_t x = tile.x - border; x < tile.x + tile.width + border; ++x, to += channels) {
            if (y < 0 || y >= args.height * zoom || x < 0 || x >= args.width * zoom) {
                memset(to, 0, channels * sizeof(float));
                continue;
            }
            const float* from = row_of(args.x, y / zoom * args.width + x / zoom);
            if (args.affine.data == nullptr)
                memcpy(to, from, channels * sizeof(float));
            else
                activate(from, row_of(args.affine, 0), row_of(args.affine, 1), channels, to);
        }
    }
}

__m256 load_weights8(DType dtype, const void* row, int64_t i) {
    if (dtype == DType::kF32) return _mm256_loadu_ps(static_cast<const float*>(row) + i);
    const __m128i half =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(row) + i));
    if (dtype == DType::kF16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Weights [begin, begin + n) of a row, n < 8, zeros after them.
__m256 load_weights_tail(DType dtype, const void* row, int64_t begin, int n) {
    alignas(32) uint8_t bytes[32] = {};
    const int size = dtype == DType::kF32 ? 4 : 2;
    memcpy(bytes, static_cast<const uint8_t*>(row) + begin * size, static_cast<size_t>(n) * size);
    return load_weights8(dtype, bytes, 0);
}

void transpose8(__m256 r[8]) {
    __m256 t[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    __m256 u[8];
    for (int i = 0; i < 2; ++i) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

// Entries [begin, begin + n) of 16 weight rows as panel[n][16]; rows past the last channel are
// zeros.
void pack_panel(const Tensor& weight, int64_t channel, int64_t begin, int n, float* panel) {
    const int64_t size = weight.dtype == DType::kF32 ? 4 : 2;
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < n; i += 8) {
            __m256 rows[8];
            for (int r = 0; r < 8; ++r) {
                const int64_t row = channel + half * 8 + r;
                const void* from =
                    static_cast<const uint8_t*>(weight.data) + row * weight.stride * size;
                rows[r] = row >= weight.rows ? _mm256_setzero_ps()
                          : n - i >= 8 ? load_weights8(weight.dtype, from, begin + i)
                                       : load_weights_tail(weight.dtype, from, begin + i, n - i);
            }
            transpose8(rows);
            for (int r = 0; r < 8 && i + r < n; ++r)
                _mm256_store_ps(panel + (i + r) * kPanel + half * 8, rows[r]);
        }
    }
}

// Where sums of up to 16 channels go.
struct Target {
    float* out;
    int64_t stride;
    int channels; // 1 to 16
};

// out += x w for kRows pixels, `step` floats apart, and 16 channels over n products.
template <int kRows>
inline void multiply_tile(const float* x, int64_t step, const float* panel, int n,
                          const Target& target) {
    __m256 acc[kRows][2];
    for (int r = 0; r < kRows; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int i = 0; i < n; ++i) {
        const __m256 w0 = _mm256_load_ps(panel + i * kPanel);
        const __m256 w1 = _mm256_load_ps(panel + i * kPanel + 8);
        for (int r = 0; r < kRows; ++r) {
            const __m256 value = _mm256_broadcast_ss(x + r * step + i);
            acc[r][0] = _mm256_fmadd_ps(value, w0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(value, w1, acc[r][1]);
        }
    }
    if (target.channels == kPanel) {
        for (int r = 0; r < kRows; ++r) {
            float* to = target.out + r * target.stride;
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), acc[r][0]));
            _mm256_storeu_ps(to + 8, _mm256_add_ps(_mm256_loadu_ps(to + 8), acc[r][1]));
        }
        return;
    }
    alignas(32) float sums[kRows][kPanel];
    for (int r = 0; r < kRows; ++r) {
        _mm256_store_ps(sums[r], acc[r][0]);
        _mm256_store_ps(sums[r] + 8, acc[r][1]);
    }
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < target.channels; ++c)
            target.out[r * target.stride + c] += sums[r][c];
}

void multiply_rows(int rows, const float* x, int64_t step, const float* panel, int n,
                   const Target& target) {
    switch (rows) {
    case 6:
        return multiply_tile<6>(x, step, panel, n, target);
    case 5:
        return multiply_tile<5>(x, step, panel, n, target);
    case 4:
        return multiply_tile<4>(x, step, panel, n, target);
    case 3:
        return multiply_tile<3>(x, step, panel, n, target);
    case 2:
        return multiply_tile<2>(x, step, panel, n, target);
    default:
        return multiply_tile<1>(x, step, panel, n, target);
    }
}

// out = bias + add, the value that sums start from. Cases apart, or the compiler reads through a
// null pointer under an empty mask: harmless on a processor, a fault for emulators that read first.
void start_row(const Conv2dArgs& args, int64_t pixel) {
    const int64_t channels = args.out.cols;
    float* out = row_of(args.out, pixel);
    const float* bias = static_cast<const float*>(args.bias.data);
    const float* add = args.add.data == nullptr ? nullptr : row_of(args.add, pixel);
    const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
    if (bias != nullptr && add != nullptr)
        for (int64_t c = 0; c < channels; ++c)
            out[c] = bias[c] + add[c];
    else if (bias != nullptr || add != nullptr)
        memmove(out, bias != nullptr ? bias : add, bytes);
    else
        memset(out, 0, bytes);
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
                         args.out.stride, static_cast<int>(left < kPanel ? left : kPanel)};
        for (int64_t column = 0; column < tile.width; column += kGroup6) {
            const int64_t rows = tile.width - column;
            multiply_rows(static_cast<int>(rows < kGroup6 ? rows : kGroup6), x + column * step,
                          step, tile.panel, n, target);
            target.out += kGroup6 * args.out.stride;
        }
    }
}

void convolve_tile(const Conv2dArgs& args, const Tile& tile) {
    const int64_t image_width = args.width * (args.upsample ? 2 : 1);
    const int64_t row_products = args.kernel * args.x.cols;
    // Runs of equal length, so that none is very short.
    const int64_t runs = (row_products + kRun - 1) / kRun;
    const int64_t run = (row_products + runs - 1) / runs;
    prepare_input(args, tile);
    for (int64_t y = tile.y; y < tile.y + tile.height; ++y)
        for (int64_t x = tile.x; x < tile.x + tile.width; ++x)
            start_row(args, y * image_width + x);
    for (int64_t channel = 0; channel < args.out.cols; channel += kPanel) {
        for (int ky = 0; ky < args.kernel; ++ky) {
            for (int64_t offset = 0; offset < row_products; offset += run) {
                const int n =
                    static_cast<int>(row_products - offset < run ? row_products - offset : run);
                pack_panel(args.weight, channel, ky * row_products + offset, n, tile.panel);
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
    const int64_t panel_size = static_cast<int64_t>(kRun) * kPanel;
    const int64_t input_size = (kPieceRows + border2) * (widest + border2) * channels;
    auto* memory = static_cast<float*>(scratch.get((panel_size + input_size) * sizeof(float)));
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

void overlay_avx2_conv(KernelTable& table) {
    table.conv2d = conv2d;
    table.conv2d_piece_rows = kPieceRows;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_conv(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
