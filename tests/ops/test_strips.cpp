// SPDX-License-Identifier: Apache-2.0
// Ops of the VAE on a picture in strips: the same bytes as on the whole, at every level.
#include <algorithm>
#include <cstring>

#include "backends/cpu/backend.h"
#include "ops/op_test.h"

using namespace op_test;

static std::unique_ptr<Backend> backend(cpu::Level level, Precision precision) {
    std::unique_ptr<Backend> out;
    CHECK_OK(cpu::CpuBackend::create({2, precision}, level, &out));
    return out;
}

struct Shape {
    int64_t height, width, in, out;
    int kernel = 3;
    bool upsample = false;
    bool activated = false;
    bool add = false;
};

// Strips of `step` output rows, each with the neighbours it needs of the input.
static void compare_conv(Backend& device, const Shape& s, int64_t step) {
    Random random(7);
    const int64_t zoom = s.upsample ? 2 : 1, border = s.kernel / 2;
    const int64_t out_height = zoom * s.height, out_width = zoom * s.width;
    Matrix x(s.height * s.width, s.in, 3, random),
        weight(s.out, s.kernel * s.kernel * s.in, 0, random), bias(1, s.out, 0, random),
        affine(2, s.in, 0, random), add(out_height * out_width, s.out, 2, random);
    Matrix whole = add, strips = add;
    Conv2dArgs args;
    args.x = x.tensor(), args.weight = weight.tensor(), args.bias = bias.tensor();
    if (s.activated) args.affine = affine.tensor();
    args.out = whole.tensor();
    if (s.add) args.add = args.out;
    args.height = s.height, args.width = s.width;
    args.kernel = s.kernel, args.upsample = s.upsample;
    CHECK_OK(device.conv2d(args));
    for (int64_t begin = 0; begin < out_height; begin += step) {
        const int64_t end = std::min(begin + step, out_height);
        const int64_t top = std::max<int64_t>(0, begin / zoom - border);
        const int64_t bottom = std::min(s.height, end / zoom + border);
        args.x = x.tensor().slice_rows(top * s.width, (bottom - top) * s.width);
        args.height = bottom - top;
        args.above = static_cast<int>(begin / zoom - top);
        args.below = static_cast<int>(bottom - end / zoom);
        args.out = strips.tensor().slice_rows(begin * out_width, (end - begin) * out_width);
        if (s.add) args.add = args.out;
        CHECK_OK(device.conv2d(args));
    }
    CHECK(strips.same_bytes(whole) && strips.intact());
}

TEST(convolutions) {
    const Shape shapes[] = {
        {12, 9, 8, 16},
        {17, 6, 12, 20, 3, false, true, true},
        {8, 5, 16, 24, 3, true},
        {7, 11, 5, 3, 3, true, true, true},
        {9, 7, 24, 8, 1, false, false, true},
    };
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
        for (const Precision precision : {Precision::kFast, Precision::kExact}) {
            const std::unique_ptr<Backend> device = backend(level, precision);
            for (const Shape& s : shapes)
                for (const int64_t step : {4, 8, 12})
                    compare_conv(*device, s, step);
        }
    }
}

// Where nothing is cut to blocks of four rows, strips may have any height.
TEST(convolutions_of_single_rows) {
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features()))
        compare_conv(*backend(level, Precision::kExact), {6, 7, 9, 11, 3, false, true, true}, 1);
}

TEST(group_norm) {
    constexpr int64_t kWidth = 21, kHeight = 37, kPiece = 4 * kWidth;
    constexpr int kGroups = 6;
    Random random(3);
    Matrix x(kHeight * kWidth, 24, 5, random), gain(1, 24, 0, random), bias(1, 24, 0, random),
        carry(6, kGroups, 0);
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
        const std::unique_ptr<Backend> device = backend(level, Precision::kFast);
        Matrix whole(2, 24, 1), strips(2, 24, 1);
        GroupNormArgs args;
        args.x = x.tensor(), args.gain = gain.tensor(), args.bias = bias.tensor();
        args.affine = whole.tensor();
        args.groups = kGroups, args.eps = 1e-6f, args.piece = kPiece;
        CHECK_OK(device->group_norm(args));
        args.affine = strips.tensor(), args.carry = carry.tensor(), args.pixels = x.rows();
        for (const int64_t step : {kPiece, 3 * kPiece, 100 * kPiece}) {
            for (int64_t begin = 0; begin < x.rows(); begin += step) {
                args.x = x.tensor().slice_rows(begin, std::min(step, x.rows() - begin));
                args.first = begin == 0, args.last = begin + step >= x.rows();
                CHECK_OK(device->group_norm(args));
            }
            CHECK(strips.same_bytes(whole) && strips.intact() && carry.intact());
        }
    }
}

TEST(what_is_no_strip) {
    Matrix x(12, 4, 0), weight(4, 36, 0), out(12, 4, 0), affine(2, 4, 0), vector(1, 4, 0);
    Conv2dArgs conv;
    conv.x = x.tensor(), conv.weight = weight.tensor(), conv.out = out.tensor();
    conv.height = 3, conv.width = 4;
    CHECK_OK(check(conv));
    conv.above = 1;
    CHECK(!check(conv).ok()); // out has three rows
    conv.out = out.tensor().slice_rows(0, 8);
    CHECK_OK(check(conv));
    conv.above = 2;
    CHECK(!check(conv).ok());
    GroupNormArgs norm;
    norm.x = x.tensor(), norm.gain = vector.tensor(), norm.bias = vector.tensor();
    norm.affine = affine.tensor(), norm.groups = 2, norm.eps = 1e-6f;
    CHECK_OK(check(norm));
    norm.last = false;
    CHECK(!check(norm).ok()); // nothing to carry sums in
    Matrix carry(6, 2, 0);
    norm.carry = carry.tensor();
    CHECK(!check(norm).ok()); // the picture has no pixels
    norm.pixels = 12;
    CHECK_OK(check(norm));
    norm.piece = 0;
    CHECK(!check(norm).ok());
}
