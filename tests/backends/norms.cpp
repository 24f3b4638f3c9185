// SPDX-License-Identifier: Apache-2.0
// rms_norm, layer_norm, head_norm_rope.
#include <cmath>

#include "device_case.h"

namespace backend_test {

namespace {

struct Shape {
    int64_t rows, cols, gap, shift;
};
// One, odd, a row of the model, rows that are slices, addresses that allow one float only, and rows
// longer than a kernel may hold at once.
const Shape kShapes[] = {{1, 1, 0, 0},    {3, 5, 0, 0},     {7, 128, 0, 0},     {21, 200, 12, 0},
                         {5, 203, 6, 0},  {9, 2560, 0, 0},  {4, 3072, 9216, 0}, {4, 3072, 1, 1},
                         {2, 4099, 0, 3}, {2, 16384, 0, 0}, {2, 20000, 4, 0},   {1, 5001, 0, 0}};

std::string name_of(const Shape& s) {
    return format("%lld x %lld, gap %lld, shift %lld", static_cast<long long>(s.rows),
                  static_cast<long long>(s.cols), static_cast<long long>(s.gap),
                  static_cast<long long>(s.shift));
}

// f32 sums of a few thousand squares in any order.
constexpr double kAllowed = 4e-6;

} // namespace

TEST(device_rms_norm) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes) {
            Case c(pair, name_of(s));
            const Operand x = c.random(s.rows, s.cols, s.gap, s.shift, 0.25f, 3),
                          gain = c.random(1, s.cols, 0, s.shift),
                          out = c.room(s.rows, s.cols, s.gap + 4, s.shift);
            c.run([&](Side side) {
                return side.backend.rms_norm({x[side], gain[side], out[side], 1e-6f});
            });
            c.expect_close(out, kAllowed);
            Case in_place(pair, "in place");
            const Operand y = in_place.random(s.rows, s.cols), g = in_place.random(1, s.cols);
            in_place.run([&](Side side) {
                return side.backend.rms_norm({y[side], g[side], y[side], 1e-6f});
            });
            in_place.expect_close(y, kAllowed);
        }
    });
}

TEST(device_layer_norm) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes) {
            Case c(pair, name_of(s));
            // A mean far from zero: the variance must not come from a difference of large sums.
            const Operand x = c.random(s.rows, s.cols, s.gap, s.shift, 5, 3),
                          scale = c.random(1, s.cols, 0, s.shift),
                          shift = c.random(1, s.cols, 0, s.shift),
                          out = c.room(s.rows, s.cols, s.gap, s.shift);
            c.run([&](Side side) {
                return side.backend.layer_norm(
                    {x[side], scale[side], shift[side], out[side], 1e-6f});
            });
            c.expect_close(out, 1e-5);
        }
    });
}

TEST(device_head_norm_rope) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const RopePairs pairs : {RopePairs::kHalves, RopePairs::kNeighbours})
            for (const int head_dim : {2, 6, 32, 64, 128, 256, 320})
                for (const int64_t heads : {1, 3, 24}) {
                    const int64_t rows = 13, half = head_dim / 2;
                    Case c(pair, format("%d heads of %d, %s", static_cast<int>(heads), head_dim,
                                        pairs == RopePairs::kHalves ? "halves" : "neighbours"));
                    const Operand x = c.random(rows, heads * head_dim, 2 * head_dim, 0, 0, 3),
                                  gain = c.random(1, head_dim),
                                  also = c.random(rows - 2, 2 * head_dim, 0, 0, 0, 3),
                                  also_gain = c.random(1, head_dim);
                    const auto angle = [](int64_t r, int64_t i) {
                        return static_cast<float>(r) / static_cast<float>(i + 1);
                    };
                    const Operand cos = c.filled(
                                      rows, half,
                                      [&](int64_t r, int64_t i) { return std::cos(angle(r, i)); }),
                                  sin = c.filled(rows, half, [&](int64_t r, int64_t i) {
                                      return std::sin(angle(r, i));
                                  });
                    c.run([&](Side side) {
                        HeadNormRopeArgs args;
                        args.x = x[side], args.gain = gain[side];
                        if (heads != 1) args.also = also[side], args.also_gain = also_gain[side];
                        args.cos = cos[side], args.sin = sin[side];
                        args.head_dim = head_dim, args.pairs = pairs, args.eps = 1e-6f;
                        return side.backend.head_norm_rope(args);
                    });
                    c.expect_close(x, 4e-6);
                    c.expect_close(also, 4e-6);
                }
    });
}

} // namespace backend_test
