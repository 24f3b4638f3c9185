// SPDX-License-Identifier: Apache-2.0
// winograd: 3x3 convolution as F(4x4, 3x3) (Lavin and Gray 2016), for the kernel files of a level,
// which give it their registers as a struct of static functions (`Lanes`). Everything is local to
// the including file: no code of one level can reach another through the linker.
// Layout: x, out [pixels, channels] f32. Transformed weights [panel][36][K][kPanel] f32, K = Cin
//         rounded up to whole registers, a panel = two registers of output channels.
// Maths:  a tile is 4x4 outputs. Input 6x6 -> B^T d B; 36 products [tiles, K] x [K, Cout], one for
//         each point; A^T m A. 36 multiplications where the direct form has 144; f32 throughout,
//         with an error some ten times that of the direct form. A nearest-doubled input has equal
//         neighbours, so that all points of row and column 2 vanish: 25 products.
// Work:   a block of up to 8x8 tiles. Channels are activated and transformed kChunk at a time; then
//         for each kPass output channels the products of all points, kRows tiles x a panel in
//         registers over all of K, and the way back.
// Roofline: bound by FMA. At 512 channels a block of 64 tiles multiplies 1.2 Gflop with 38 MB of
//         weights that stream from L3 or memory.
#pragma once

#include <string.h>

#include <utility>

#include "backends/cpu/table.h"

namespace bonsai::cpu {
namespace {

template <class L> struct Winograd {
    using V = typename L::V;
    static constexpr int kLanes = L::kLanes;
    static constexpr int kPanel = 2 * kLanes; // output channels of the register tile
    static constexpr int kPoints = 36;
    static constexpr int kVanishing = 2; // row and column of points that doubling makes zero
    static constexpr int kChunk = 64;    // input channels prepared at a time
    static constexpr int kPass = 128;    // output channels between two ways back
    static constexpr int kPad = 16;      // floats between rows that would share cache sets

    static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
    static float* row(const Tensor& t, int64_t r) {
        return static_cast<float*>(t.data) + r * t.stride;
    }
    static int64_t depth_of(const Conv2dArgs& args) { return round_up(args.x.cols, kLanes); }
    static int64_t panels_of(const Conv2dArgs& args) {
        return round_up(args.out.cols, kPanel) / kPanel;
    }
    static bool vanishes(const Conv2dArgs& args, int point) {
        return args.upsample && (point / 6 == kVanishing || point % 6 == kVanishing);
    }

    // A block at work.
    struct Block {
        const Conv2dArgs& args;
        const float* weights;
        int64_t top, left;       // first output pixel, rows counted from the first of x
        int64_t rows, cols;      // in tiles
        int64_t tiles, depth;    // rows * cols, K
        int64_t tile_stride;     // floats between the K of two tiles
        int64_t v_stride;        // floats between two points of v
        int64_t m_stride;        // and of m
        float *prepared, *v, *m; // [4 rows + 2][4 cols + 2][kChunk], [36][tiles][K],
                                 // [36][tiles][kPass]
    };

    static size_t weight_floats(const Conv2dArgs& args) {
        return static_cast<size_t>(panels_of(args) * kPoints * depth_of(args) * kPanel);
    }

    static V load_tail(const float* from, int64_t n) {
        alignas(64) float lanes[kLanes] = {};
        memcpy(lanes, from, static_cast<size_t>(n < kLanes ? n : kLanes) * sizeof(float));
        return L::load(lanes);
    }

    // -- weights --

    // G g G^T of one input channel and kLanes output channels; taps 3x3, kPanel floats apart.
    static void transform_filter(const float* taps, int64_t tap_stride, float* out,
                                 int64_t point_stride) {
        V half[6][3];
        for (int x = 0; x < 3; ++x) {
            V g[3];
            for (int y = 0; y < 3; ++y)
                g[y] = L::load(taps + (3 * y + x) * tap_stride);
            V u[6];
            filter_points(g, u);
            for (int i = 0; i < 6; ++i)
                half[i][x] = u[i];
        }
        for (int i = 0; i < 6; ++i) {
            V u[6];
            filter_points(half[i], u);
            for (int j = 0; j < 6; ++j)
                L::store(out + (6 * i + j) * point_stride, u[j]);
        }
    }
    static void filter_points(const V g[3], V u[6]) {
        const V sixth = L::set(1.0f / 6.0f), outer = L::set(1.0f / 24.0f);
        const V ends = L::add(g[0], g[2]);
        const V wide = L::fma(outer, g[0], L::mul(sixth, g[2]));
        const V middle = L::mul(L::set(1.0f / 12.0f), g[1]);
        u[0] = L::mul(L::set(0.25f), g[0]);
        u[1] = L::mul(L::set(-1.0f / 6.0f), L::add(ends, g[1]));
        u[2] = L::mul(L::set(-1.0f / 6.0f), L::sub(ends, g[1]));
        u[3] = L::add(wide, middle);
        u[4] = L::sub(wide, middle);
        u[5] = g[2];
    }

    static void transform_weights(const Conv2dArgs& args, Range panels, float* out) {
        constexpr int kSome = 16; // input channels at a time
        const int64_t channels = args.x.cols, depth = depth_of(args);
        const int64_t size = args.weight.dtype == DType::kF32 ? 4 : 2;
        alignas(64) float taps[9][kSome][kPanel];
        float values[kSome];
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            float* to = out + panel * kPoints * depth * kPanel;
            for (int64_t c = 0; c < depth; c += kSome) {
                const int64_t n = channels - c < kSome ? channels - c : kSome;
                memset(taps, 0, sizeof taps);
                for (int o = 0; o < kPanel && panel * kPanel + o < args.out.cols; ++o) {
                    const auto* weight = static_cast<const uint8_t*>(args.weight.data) +
                                         (panel * kPanel + o) * args.weight.stride * size;
                    for (int tap = 0; tap < 9; ++tap) {
                        L::dequantize(args.weight.dtype, weight + (tap * channels + c) * size,
                                      values, n);
                        for (int64_t i = 0; i < n; ++i)
                            taps[tap][i][o] = values[i];
                    }
                }
                for (int64_t i = 0; i < kSome && c + i < depth; ++i)
                    for (int lane = 0; lane < kPanel; lane += kLanes)
                        transform_filter(&taps[0][i][lane], kSome * kPanel,
                                         to + (c + i) * kPanel + lane, depth * kPanel);
            }
        }
    }

    // -- input --

    // Channels [c, c + n) of a pixel through affine and SiLU, if there is one; zeros up to a whole
    // register.
    static void activate(const Conv2dArgs& args, const float* from, int64_t c, int64_t n,
                         float* to) {
        const bool plain = args.affine.data == nullptr;
        const float* multiplier = plain ? nullptr : row(args.affine, 0) + c;
        const float* offset = plain ? nullptr : row(args.affine, 1) + c;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            const V x = L::loadu(from + i);
            L::store(to + i,
                     plain ? x
                           : L::silu(L::fma(x, L::loadu(multiplier + i), L::loadu(offset + i))));
        }
        if (i == n) return;
        const V x = load_tail(from + i, n - i);
        L::store(to + i, plain ? x
                               : L::silu(L::fma(x, load_tail(multiplier + i, n - i),
                                                load_tail(offset + i, n - i))));
    }

    static void prepare(const Block& b, int64_t c, int64_t n) {
        const Conv2dArgs& args = b.args;
        const int zoom = args.upsample ? 2 : 1;
        float* to = b.prepared;
        for (int64_t y = b.top - 1; y < b.top + 4 * b.rows + 1; ++y) {
            const bool inside = y >= 0 && y < args.height * zoom;
            for (int64_t x = b.left - 1; x < b.left + 4 * b.cols + 1; ++x, to += kChunk) {
                if (!inside || x < 0 || x >= args.width * zoom)
                    memset(to, 0, kChunk * sizeof(float));
                else
                    activate(args, row(args.x, y / zoom * args.width + x / zoom) + c, c, n, to);
            }
        }
    }

    static void input_points(const V d[6], V t[6]) {
        const V two = L::set(2.0f), four = L::set(4.0f), five = L::set(-5.0f);
        const V a = L::sub(d[4], L::mul(four, d[2])), b = L::sub(d[3], L::mul(four, d[1]));
        const V c = L::sub(d[4], d[2]), e = L::mul(two, L::sub(d[3], d[1]));
        t[0] = L::fma(four, d[0], L::fma(five, d[2], d[4]));
        t[1] = L::add(a, b);
        t[2] = L::sub(a, b);
        t[3] = L::add(c, e);
        t[4] = L::sub(c, e);
        t[5] = L::fma(four, d[1], L::fma(five, d[3], d[5]));
    }

    // Channels [c, c + n) of all tiles from prepared to v.
    static void transform_input(const Block& b, int64_t c, int64_t n) {
        const int64_t pitch = (4 * b.cols + 2) * kChunk;
        for (int64_t t = 0; t < b.tiles; ++t) {
            const float* from =
                b.prepared + t / b.cols * 4 * pitch + t % b.cols * 4 * int64_t{kChunk};
            float* to = b.v + t * b.tile_stride + c;
            for (int64_t i = 0; i < n; i += kLanes) {
                V half[6][6];
                for (int x = 0; x < 6; ++x) {
                    V d[6], u[6];
                    for (int y = 0; y < 6; ++y)
                        d[y] = L::load(from + y * pitch + x * kChunk + i);
                    input_points(d, u);
                    for (int y = 0; y < 6; ++y)
                        half[y][x] = u[y];
                }
                for (int y = 0; y < 6; ++y) {
                    V u[6];
                    input_points(half[y], u);
                    for (int x = 0; x < 6; ++x)
                        L::store(to + (6 * y + x) * b.v_stride + i, u[x]);
                }
            }
        }
    }

    // -- products --

    // out = x w for R tiles and a panel. `ahead` is what comes next from far away: a panel is used
    // for few tiles, so that waiting for it would take as long as the products. The calls for one
    // panel together ask for the whole of the next.
    template <int R>
    static void multiply(const float* x, int64_t stride, const float* panel, const float* ahead,
                         int64_t depth, float* out) {
        V acc[R][2];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
            acc[r][0] = acc[r][1] = L::zero();
        for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
            const V left = L::load(panel), right = L::load(panel + kLanes);
            L::prefetch(ahead + k * L::kAhead);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const V value = L::broadcast(x + r * stride + k);
                L::accumulate(acc[r][0], value, left);
                L::accumulate(acc[r][1], value, right);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            L::store(out + r * kPass, acc[r][0]);
            L::store(out + r * kPass + kLanes, acc[r][1]);
        }
    }
    using Multiply = void (*)(const float*, int64_t, const float*, const float*, int64_t, float*);
    template <int... R>
    static Multiply multiply_rows(int64_t rows, std::integer_sequence<int, R...>) {
        static constexpr Multiply kTable[] = {multiply<R + 1>...};
        return kTable[rows - 1];
    }

    // All tiles times a panel of a point; `next` is the panel after it.
    static void multiply_panel(const Block& b, int point, const float* panel, const float* next,
                               float* out) {
        const float* x = b.v + point * b.v_stride;
        for (int64_t t = 0; t < b.tiles; t += L::kRows) {
            const int64_t rows = b.tiles - t < L::kRows ? b.tiles - t : L::kRows;
            const auto run = multiply_rows(rows, std::make_integer_sequence<int, L::kRows>());
            run(x + t * b.tile_stride, b.tile_stride, panel, next, b.depth, out + t * kPass);
            next += b.depth * L::kAhead;
        }
    }

    // m of output channels [channel, channel + kPass).
    static void multiply_pass(const Block& b, int64_t channel) {
        const int64_t size = b.depth * kPanel, first = channel / kPanel;
        const int64_t last =
            panels_of(b.args) - first < kPass / kPanel ? panels_of(b.args) : first + kPass / kPanel;
        for (int point = 0; point < kPoints; ++point) {
            if (vanishes(b.args, point)) continue;
            for (int64_t i = first; i < last; ++i) {
                const float* panel = b.weights + (i * kPoints + point) * size;
                const float* next = i + 1 < last ? panel + kPoints * size
                                                 : b.weights + (first * kPoints + point + 1) * size;
                multiply_panel(b, point, panel, next,
                               b.m + point * b.m_stride + (i - first) * kPanel);
            }
        }
    }

    // -- output --

    static void output_points(const V m[6], V y[4]) {
        const V p = L::add(m[1], m[2]), q = L::sub(m[1], m[2]);
        const V r = L::add(m[3], m[4]), s = L::sub(m[3], m[4]);
        y[0] = L::add(m[0], L::add(p, r));
        y[1] = L::fma(L::set(2.0f), s, q);
        y[2] = L::fma(L::set(4.0f), r, p);
        y[3] = L::add(m[5], L::fma(L::set(8.0f), s, q));
    }

    // A^T m A of one tile and kLanes channels.
    static void inverse(const Block& b, const float* m, V y[4][4]) {
        V half[4][6];
        for (int x = 0; x < 6; ++x) {
            V column[6], u[4];
            for (int i = 0; i < 6; ++i)
                column[i] =
                    vanishes(b.args, 6 * i + x) ? L::zero() : L::load(m + (6 * i + x) * b.m_stride);
            output_points(column, u);
            for (int i = 0; i < 4; ++i)
                half[i][x] = u[i];
        }
        for (int i = 0; i < 4; ++i)
            output_points(half[i], y[i]);
    }

    // Sums of one pixel, channels from c on, with bias and add to out.
    static void finish(const Conv2dArgs& args, int64_t pixel, int64_t c, V sum) {
        const int64_t left = args.out.cols - c;
        float* out = row(args.out, pixel) + c;
        const float* bias = args.bias.data == nullptr ? nullptr : row(args.bias, 0) + c;
        const float* add = args.add.data == nullptr ? nullptr : row(args.add, pixel) + c;
        if (left >= kLanes) {
            if (bias != nullptr) sum = L::add(sum, L::loadu(bias));
            if (add != nullptr) sum = L::add(sum, L::loadu(add));
            L::storeu(out, sum);
            return;
        }
        if (bias != nullptr) sum = L::add(sum, load_tail(bias, left));
        if (add != nullptr) sum = L::add(sum, load_tail(add, left));
        alignas(64) float lanes[kLanes];
        L::store(lanes, sum);
        memcpy(out, lanes, static_cast<size_t>(left) * sizeof(float));
    }

    static void transform_output(const Block& b, int64_t channel) {
        const int64_t zoom = b.args.zoom();
        const int64_t height = (b.args.height - b.args.below) * zoom, width = b.args.width * zoom;
        for (int64_t t = 0; t < b.tiles; ++t) {
            const int64_t top = b.top + t / b.cols * 4, left = b.left + t % b.cols * 4;
            for (int64_t c = channel; c < channel + kPass && c < b.args.out.cols; c += kLanes) {
                V y[4][4];
                inverse(b, b.m + t * kPass + (c - channel), y);
                for (int i = 0; i < 4 && top + i < height; ++i)
                    for (int j = 0; j < 4 && left + j < width; ++j)
                        finish(b.args, (top + i) * width + left + j, c, y[i][j]);
            }
        }
    }

    // -- all of it --

    static bool convolve(const Conv2dArgs& args, const float* weights, const TileBlock& at,
                         Scratch& scratch) {
        Block b{args,           weights, 4 * at.y, 4 * at.x, at.rows, at.cols, at.rows * at.cols,
                depth_of(args), 0,       0,        0,        nullptr, nullptr, nullptr};
        b.top += int64_t{args.above} * args.zoom();
        b.tile_stride = round_up(b.depth, kPad) + kPad;
        b.v_stride = b.tiles * b.tile_stride + kPad;
        b.m_stride = b.tiles * kPass + kPad;
        const int64_t prepared = (4 * b.rows + 2) * (4 * b.cols + 2) * kChunk;
        const int64_t floats = prepared + kPoints * (b.v_stride + b.m_stride);
        b.prepared = static_cast<float*>(scratch.get(static_cast<size_t>(floats) * sizeof(float)));
        if (b.prepared == nullptr) return false;
        b.v = b.prepared + prepared;
        b.m = b.v + kPoints * b.v_stride;
        for (int64_t c = 0; c < args.x.cols; c += kChunk) {
            const int64_t n = args.x.cols - c < kChunk ? args.x.cols - c : kChunk;
            prepare(b, c, n);
            transform_input(b, c, n);
        }
        for (int64_t channel = 0; channel < args.out.cols; channel += kPass) {
            multiply_pass(b, channel);
            transform_output(b, channel);
        }
        return true;
    }
};

} // namespace
} // namespace bonsai::cpu
