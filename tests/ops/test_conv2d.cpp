// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/half.h"
#include "ops/op_test.h"

using namespace op_test;

struct Case {
    int64_t height, width, in, out;
    int kernel = 3;
    bool upsample = false;
    bool activated = false; // affine + SiLU
    bool bias = true;
    bool add = false;
    DType dtype = DType::kF32;
    float amplitude = 1.0f;
};

// All operands of a convolution.
struct Operands {
    Case shape;
    Matrix x, bias, affine, add;
    std::vector<float> weight;  // as the kernel must read it
    std::vector<uint8_t> bytes; // as stored

    Operands(const Case& c, uint64_t seed) : shape(c) {
        Random random(seed);
        x = Matrix(c.height * c.width, c.in, 5, random, c.amplitude);
        bias = Matrix(1, c.out, 0, random);
        affine = Matrix(2, c.in, 3, random, 2.0f);
        add = Matrix(pixels(), c.out, 2, random);
        const int64_t count = c.out * c.kernel * c.kernel * c.in;
        const size_t size = dtype_info(c.dtype).bytes;
        bytes.resize(static_cast<size_t>(count) * size);
        for (int64_t i = 0; i < count; ++i) {
            float value = random.uniform();
            if (c.dtype == DType::kF32) {
                std::memcpy(&bytes[static_cast<size_t>(i) * 4], &value, 4);
            } else {
                const bool f16 = c.dtype == DType::kF16;
                const uint16_t half = f16 ? f32_to_f16(value) : f32_to_bf16(value);
                value = f16 ? f16_to_f32(half) : bf16_to_f32(half);
                std::memcpy(&bytes[static_cast<size_t>(i) * 2], &half, 2);
            }
            weight.push_back(value);
        }
    }
    int zoom() const { return shape.upsample ? 2 : 1; }
    int64_t pixels() const { return shape.height * shape.width * zoom() * zoom(); }
    Conv2dArgs args(Matrix& out) {
        Conv2dArgs a;
        const int64_t cols = int64_t{shape.kernel} * shape.kernel * shape.in;
        a.x = x.tensor();
        a.weight = Tensor{shape.dtype, shape.out, cols, cols, bytes.data()};
        if (shape.bias) a.bias = bias.tensor();
        if (shape.activated) a.affine = affine.tensor();
        if (shape.add) a.add = add.tensor();
        a.out = out.tensor();
        a.height = shape.height, a.width = shape.width;
        a.kernel = shape.kernel, a.upsample = shape.upsample;
        return a;
    }
    // Input channel at a pixel of the doubled image; zero outside.
    double input(int64_t row, int64_t column, int64_t c) const {
        if (row < 0 || column < 0 || row >= shape.height * zoom() || column >= shape.width * zoom())
            return 0.0;
        const double value = x.at(row / zoom() * shape.width + column / zoom(), c);
        if (!shape.activated) return value;
        const double y = affine.at(0, c) * value + affine.at(1, c);
        return y / (1.0 + std::exp(-y));
    }
    Expected formula() const {
        Expected out;
        const int border = shape.kernel / 2;
        const int64_t width = shape.width * zoom();
        for (int64_t p = 0; p < pixels(); ++p) {
            std::vector<double> patch;
            for (int ky = 0; ky < shape.kernel; ++ky)
                for (int kx = 0; kx < shape.kernel; ++kx)
                    for (int64_t c = 0; c < shape.in; ++c)
                        patch.push_back(input(p / width + ky - border, p % width + kx - border, c));
            for (int64_t o = 0; o < shape.out; ++o) {
                double sum = (shape.bias ? bias.at(0, o) : 0.0) + (shape.add ? add.at(p, o) : 0.0);
                for (size_t i = 0; i < patch.size(); ++i)
                    sum += patch[i] * weight[static_cast<size_t>(o) * patch.size() + i];
                out.push_back(sum);
            }
        }
        return out;
    }
};

// The fast form of 3x3 kernels, in blocks of two shapes that must give the same bytes. Its points
// weigh inputs up to 25 times, so that it is some ten times less exact.
static void compare_winograd(Operands& operands, const Expected& expected, const KernelTable& table,
                             double tolerance) {
    const Case& c = operands.shape;
    const int64_t rows = (c.height * operands.zoom() + 3) / 4,
                  cols = (c.width * operands.zoom() + 3) / 4;
    Matrix first;
    for (const int64_t side : {3, 5}) {
        Matrix out(operands.pixels(), c.out, 7);
        const Conv2dArgs args = operands.args(out);
        Scratch weights, scratch;
        const size_t count = table.winograd_weight_floats(args);
        auto* transformed = static_cast<float*>(weights.get((count + 16) * sizeof(float)));
        std::fill(transformed + count, transformed + count + 16, -7.0f);
        for (int64_t panel = 0; panel * table.winograd_panel < c.out; ++panel)
            table.winograd_weights(args, {panel, panel + 1}, transformed);
        CHECK(std::all_of(transformed + count, transformed + count + 16,
                          [](float x) { return x == -7.0f; }));
        for (int64_t y = 0; y < rows; y += side)
            for (int64_t x = 0; x < cols; x += side)
                CHECK(table.winograd(args, transformed,
                                     {y, x, std::min(side, rows - y), std::min(side, cols - x)},
                                     scratch));
        CHECK(rel_l2(out, expected) < tolerance);
        CHECK(out.intact());
        CHECK(side == 3 || out.same_bytes(first));
        first = out;
    }
}

// f32 sums of up to 256 products at a time: 1e-6 is some ten times the usual error.
static void compare(const Case& c, double tolerance = 1e-6) {
    Operands operands(c, static_cast<uint64_t>(c.height * 131 + c.width * 17 + c.in * 3 + c.out));
    const Expected expected = operands.formula();
    for (const KernelTable* table : levels()) {
        Matrix out(operands.pixels(), c.out, 7);
        Scratch scratch;
        CHECK_OK(check(operands.args(out)));
        CHECK(same_in_pieces(c.height * operands.zoom(), out, [&](Range rows) {
            CHECK(table->conv2d(operands.args(out), rows, scratch));
        }));
        CHECK(rel_l2(out, expected) < tolerance);
        CHECK(out.intact());
        if (c.kernel == 3 && table->winograd)
            compare_winograd(operands, expected, *table, 10 * tolerance);
    }
}

TEST(images) {
    for (int kernel : {1, 3})
        for (int64_t height : {1, 2, 9})
            for (int64_t width : {1, 2, 5, 6, 13})
                for (bool upsample : {false, true})
                    compare({height, width, 8, 16, kernel, upsample});
}

TEST(channels) {
    for (int64_t in : {1, 3, 7, 32, 33, 96})
        for (int64_t out : {1, 3, 15, 17, 40})
            for (bool activated : {false, true})
                compare({4, 7, in, out, 3, false, activated});
}

TEST(operands) {
    for (int kernel : {1, 3})
        for (bool activated : {false, true})
            for (bool bias : {false, true})
                for (bool add : {false, true})
                    for (bool upsample : {false, true})
                        compare({3, 5, 12, 20, kernel, upsample, activated, bias, add});
}

TEST(weight_types) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
        for (int64_t in : {5, 16, 21})
            compare({5, 6, in, 19, 3, false, true, true, true, dtype});
}

TEST(model_shapes) {
    compare({11, 20, 32, 512, 3, false, false, true, false, DType::kF16});
    compare({9, 14, 512, 64, 3, false, true, true, true, DType::kF16});
    compare({4, 12, 384, 48, 3, true, false, true, false, DType::kBF16});
    compare({6, 10, 512, 256, 1, false, false, true, false, DType::kF16});
    compare({8, 18, 128, 3, 3, false, true, true, false, DType::kBF16});
    compare({3, 300, 64, 32, 3, false, true, true, false, DType::kF16}); // wider than a tile
    compare({10, 70, 1024, 16, 3, false, false, true, false, DType::kF16});
}

TEST(extremes) {
    compare({5, 7, 24, 18, 3, false, true, true, false, DType::kF32, 1e4f});
    compare({5, 7, 24, 18, 3, false, false, true, false, DType::kF32, 1e15f});
    compare({5, 7, 24, 18, 3, false, false, false, false, DType::kF32, 1e-30f});
    compare({5, 7, 24, 18, 3, false, false, false, false, DType::kF32, 1e-40f},
            1e-3); // denormals have few digits
}

// Residual blocks add to what out holds.
TEST(add_in_place) {
    Operands operands({6, 9, 16, 24, 3, false, true, true, true}, 5);
    const Expected expected = operands.formula();
    for (const KernelTable* table : levels()) {
        Matrix out = operands.add;
        Conv2dArgs args = operands.args(out);
        args.add = args.out;
        Scratch scratch;
        CHECK_OK(check(args));
        CHECK(table->conv2d(args, {0, 6}, scratch));
        CHECK(rel_l2(out, expected) < 1e-6);
        CHECK(out.intact());
    }
}

// Scratch of the fast levels is a few MB whatever the image.
TEST(scratch_is_bounded) {
    for (const KernelTable* table : levels()) {
        if (table == levels().front()) continue;
        size_t peak[2];
        for (int i = 0; i < 2; ++i) {
            Operands operands({i == 0 ? 8 : 40, 512, 256, 1, 3, false, true}, 6);
            Matrix out(operands.pixels(), 1);
            Scratch scratch;
            CHECK(table->conv2d(operands.args(out), {0, operands.shape.height}, scratch));
            peak[i] = scratch.peak();
        }
        CHECK(peak[0] == peak[1] && peak[0] < (4u << 20));
    }
}
