// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "device_case.h"

namespace backend_test {

namespace {

struct Shape {
    int64_t height, width, in, out;
    int kernel = 3;
    bool upsample = false;
    bool activated = false; // affine + SiLU
    bool add = false;
    DType dtype = DType::kBF16;
    float spread = 1;
    int64_t gap = 0;
};

std::string name_of(const Shape& s) {
    return format("%lld x %lld, %lld -> %lld, kernel %d%s%s%s, %s, gap %lld",
                  static_cast<long long>(s.height), static_cast<long long>(s.width),
                  static_cast<long long>(s.in), static_cast<long long>(s.out), s.kernel,
                  s.upsample ? ", doubled" : "", s.activated ? ", activated" : "",
                  s.add ? ", add" : "", dtype_info(s.dtype).name, static_cast<long long>(s.gap));
}

// `into_add`: the result takes the place of what is added.
void compare(Pair& pair, const Shape& s, bool into_add, double allowed) {
    Case c(pair, name_of(s));
    const int64_t pixels = s.height * s.width * (s.upsample ? 4 : 1);
    const Operand x = c.random(s.height * s.width, s.in, s.gap, s.gap, 0, s.spread),
                  affine = c.random(2, s.in, 3, 0, 0, 2), bias = c.random(1, s.out),
                  add = c.random(pixels, s.out, s.gap, s.gap),
                  weight = c.weight(s.dtype, s.out, s.kernel * s.kernel * s.in),
                  out = into_add ? add : c.room(pixels, s.out, s.gap, s.gap);
    c.run([&](Side side) {
        Conv2dArgs args;
        args.x = x[side], args.weight = weight[side], args.out = out[side];
        if (s.in % 2 == 0) args.bias = bias[side];
        if (s.activated) args.affine = affine[side];
        if (s.add) args.add = add[side];
        args.height = s.height, args.width = s.width;
        args.kernel = s.kernel, args.upsample = s.upsample;
        return side.backend.conv2d(args);
    });
    c.expect_close(out, allowed);
}

} // namespace

// Operands are rounded to f16 (2^-12 on average), sums are f32.
TEST(device_conv2d) {
    const Shape shapes[] = {
        {1, 1, 8, 8},
        {5, 7, 16, 24},
        {3, 40, 200, 96, 1, false, false, true, DType::kF32},
        {9, 13, 32, 64, 3, false, true, true, DType::kF16, 1, 4},
        {8, 10, 64, 128, 3, true, false, false},
        {17, 11, 65, 260, 3, false, true, true, DType::kBF16, 3, 3},
        {3, 3, 7, 3, 1, true, true, false, DType::kF32, 1, 1},
        {20, 33, 128, 3, 3, false, true},
        {6, 5, 32, 512},
        {16, 16, 192, 256, 3, false, true, true},
    };
    for (const Precision precision : {Precision::kFast, Precision::kExact}) {
        for_each_device(precision, [&](Pair& pair) {
            for (const Shape& s : shapes) {
                compare(pair, s, false, 1e-3);
                if (s.add) compare(pair, s, true, 1e-3);
            }
        });
    }
}

// Inputs that no norm bounds, far beyond and far below the range of f16.
TEST(device_conv2d_range) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const float spread : {1e6f, 1e-3f, 1e-12f})
            compare(pair, {6, 9, 32, 48, 3, false, false, false, DType::kF32, spread}, false, 1e-3);
    });
}

// More lines than one band of the rounded input holds.
TEST(device_conv2d_bands) {
    if (test::brief()) return;
    for_each_device(Precision::kExact, [](Pair& pair) {
        compare(pair, {900, 901, 8, 1, 3, false, true, true}, true, 1e-3);
    });
}

// A picture in strips of three rows, each with its neighbours above and below.
TEST(device_conv2d_strips) {
    const Shape shapes[] = {{10, 13, 32, 64, 3, false, true, true, DType::kF16, 1, 4},
                            {8, 10, 64, 128, 3, true},
                            {9, 33, 128, 3, 3, false, true}};
    for_each_device(Precision::kFast, [&](Pair& pair) {
        for (const Shape& s : shapes) {
            Case c(pair, name_of(s) + ", strips");
            const int64_t zoom = s.upsample ? 2 : 1, line = s.width * zoom * zoom;
            const Operand x = c.random(s.height * s.width, s.in, s.gap, s.gap),
                          affine = c.random(2, s.in, 3, 0, 0, 2), bias = c.random(1, s.out),
                          weight = c.weight(s.dtype, s.out, s.kernel * s.kernel * s.in),
                          out = s.add ? c.random(s.height * line, s.out, s.gap, s.gap)
                                      : c.room(s.height * line, s.out, s.gap, s.gap);
            c.run([&](Side side) {
                for (int64_t begin = 0; begin < s.height; begin += 3) {
                    const int64_t end = std::min(begin + 3, s.height);
                    Conv2dArgs args;
                    args.above = begin > 0, args.below = end < s.height;
                    args.height = end - begin + args.above + args.below, args.width = s.width;
                    args.x = x.rows((begin - args.above) * s.width, args.height * s.width)[side];
                    args.weight = weight[side], args.bias = bias[side];
                    args.out = out.rows(begin * line, (end - begin) * line)[side];
                    if (s.activated) args.affine = affine[side];
                    if (s.add) args.add = args.out;
                    args.upsample = s.upsample;
                    BONSAI_TRY(side.backend.conv2d(args));
                }
                return Status();
            });
            c.expect_close(out, 1e-3);
        }
    });
}

} // namespace backend_test
