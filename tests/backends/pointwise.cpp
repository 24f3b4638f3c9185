// SPDX-License-Identifier: Apache-2.0
// silu, swiglu, affine, embed_rows.
#include "device_case.h"

#include <cmath>

namespace backend_test {

namespace {

struct Shape {
    int64_t rows, cols, gap, shift;
};
const Shape kShapes[] = {{1, 1, 0, 0},   {3, 5, 0, 0},     {21, 200, 12, 0}, {5, 203, 6, 0},
                         {4, 256, 1, 1}, {64, 9216, 0, 0}, {300, 1028, 4, 0}};

std::string name_of(const Shape& s) {
    return format("%lld x %lld, gap %lld, shift %lld", static_cast<long long>(s.rows),
                  static_cast<long long>(s.cols), static_cast<long long>(s.gap),
                  static_cast<long long>(s.shift));
}

} // namespace

TEST(device_silu) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes) {
            Case c(pair, name_of(s));
            const Operand x = c.random(s.rows, s.cols, s.gap, s.shift, 0, 20),
                          out = c.room(s.rows, s.cols, 2 * s.gap, s.shift);
            c.run([&](Side side) { return side.backend.silu({x[side], out[side]}); });
            c.expect_close(out, 1e-6);
        }
        // Where exp overflows, the result is 0 or x.
        Case c(pair, "large values");
        const Operand x = c.filled(1, 8, [](int64_t, int64_t i) {
            return (i % 2 ? 1.0f : -1.0f) * (i < 4 ? 100.0f : 3e4f);
        });
        c.run([&](Side side) { return side.backend.silu({x[side], x[side]}); });
        c.expect_close(x, 1e-6);
    });
}

// Gate and up are halves of one matrix, as behind a fused product.
TEST(device_swiglu) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes) {
            Case c(pair, name_of(s));
            const Operand both = c.random(s.rows, 2 * s.cols, s.gap, s.shift, 0, 4),
                          out = c.room(s.rows, s.cols, s.gap, s.shift);
            const Operand gate = both.cols(0, s.cols), up = both.cols(s.cols, s.cols);
            c.run(
                [&](Side side) { return side.backend.swiglu({gate[side], up[side], out[side]}); });
            c.expect_close(out, 1e-6);
            Case in_place(pair, name_of(s) + ", in place");
            const Operand g = in_place.random(s.rows, s.cols), u = in_place.random(s.rows, s.cols);
            in_place.run(
                [&](Side side) { return side.backend.swiglu({g[side], u[side], g[side]}); });
            in_place.expect_close(g, 1e-6);
        }
    });
}

TEST(device_affine) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes) {
            Case c(pair, name_of(s));
            const Operand x = c.random(s.rows, s.cols, s.gap, s.shift),
                          affine = c.random(2, s.cols, s.gap, s.shift),
                          out = c.room(s.rows, s.cols, s.gap, s.shift);
            c.run(
                [&](Side side) { return side.backend.affine({x[side], affine[side], out[side]}); });
            c.expect_close(out, 1e-6);
        }
    });
}

TEST(device_embed_rows) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        const int32_t ids[] = {0, 18, 7, 7, 1};
        for (int i = 0; i < kDTypeCount; ++i) {
            const DType dtype = static_cast<DType>(i);
            for (const int64_t cols : {int64_t{3}, int64_t{128}, int64_t{2560}}) {
                if (cols % dtype_info(dtype).block != 0) continue;
                Case c(pair,
                       format("%s, %d columns", dtype_info(dtype).name, static_cast<int>(cols)));
                const Operand table = c.weight(dtype, 19, cols), out = c.room(5, cols, 5);
                c.run([&](Side side) {
                    return side.backend.embed_rows({table[side], ids, out[side]});
                });
                c.expect_close(out, 2e-7); // the product with a block's scale is exact or rounded
            }
        }
    });
}

// Bytes of pixels, halves between two bytes and values beyond them included, are the processor's.
TEST(device_read_pixels) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const int64_t pixels : {int64_t{1}, int64_t{7}, int64_t{1001}, int64_t{64 * 48}}) {
            std::vector<float> values(static_cast<size_t>(3 * pixels));
            for (size_t i = 0; i < values.size(); ++i)
                values[i] = static_cast<float>(i % 1277) / 510.0f * 2 - 2.5f;
            for (const float last : {values.back(), INFINITY, -INFINITY, NAN}) {
                values.back() = last;
                std::vector<uint8_t> rgb[2];
                bool finite[2] = {};
                for (const int side : {0, 1}) {
                    Backend& backend = side ? *pair.device : *pair.cpu;
                    std::unique_ptr<Buffer> buffer;
                    CHECK_OK(backend.allocate(values.size() * sizeof(float), &buffer));
                    const Tensor there{DType::kF32, pixels, 3, 3, buffer->data()};
                    CHECK_OK(backend.write(there, values.data()));
                    rgb[side].resize(values.size());
                    CHECK_OK(backend.read_pixels(there, rgb[side].data(), &finite[side]));
                }
                CHECK(rgb[0] == rgb[1]);
                CHECK(finite[0] == finite[1] && finite[0] == std::isfinite(last));
            }
        }
    });
}

} // namespace backend_test
