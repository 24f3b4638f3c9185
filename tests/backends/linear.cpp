// SPDX-License-Identifier: Apache-2.0
// linear: all weight types, fast and exact, rows from one token to a picture's, shapes that fill no
// tile, strides, bias, gate and accumulation, up to three projections of one input.
#include <algorithm>
#include <cmath>
#include <limits>

#include "device_case.h"

namespace backend_test {

namespace {

struct Shape {
    int64_t rows, out, in;
};
// K is a multiple of every block; N is odd, smaller than a tile, or spans several; 17 tokens and
// more leave the kernels for few tokens.
const Shape kShapes[] = {{1, 5, 128},     {3, 33, 256},     {4, 130, 384},    {5, 16, 128},
                         {17, 129, 640},  {77, 200, 256},   {129, 257, 1152}, {300, 384, 128},
                         {512, 136, 384}, {1536, 272, 1280}};

// Both sides make the same int8 codes and sums of integers; what differs is the order of f32 sums.
constexpr double kFastTolerance = 2e-5;
// Two bf16 terms for each factor: 2^-16 of a product, sums of some 1000 of them.
constexpr double kExactTolerance = 3e-5;

// CUDA on capability 9.0 takes f16 for these types, which linear_half.cpp compares with exact sums;
// here it meets the codes of the CPU.
constexpr double kCodesTolerance = 1e-2;

double tolerance(const Pair& pair, Precision precision, DType dtype) {
    if (precision == Precision::kExact) return kExactTolerance;
    const bool four_or_eight = is_block_quantized(dtype) && !is_low_bit(dtype);
    const bool halves = pair.device->device().features == "sm_90";
    return four_or_eight && halves ? kCodesTolerance : kFastTolerance;
}

std::string name_of(DType dtype, const Shape& s, const char* what) {
    return format("%s, %lld x %lld x %lld, %s", dtype_info(dtype).name,
                  static_cast<long long>(s.rows), static_cast<long long>(s.out),
                  static_cast<long long>(s.in), what);
}

// Inputs of a product with weights of `types`. Where the device shares scales among more of them
// than the CPU does, both must come to the same codes: multiples of a power of two, the largest of
// each group of 128 being 127 times that.
Operand inputs(Case& c, Pair& pair, Precision precision, std::initializer_list<DType> types,
               int64_t rows, int64_t cols, int64_t gap = 0, int64_t shift = 0) {
    bool wide = precision == Precision::kFast &&
                pair.device->activations().low_bit_group != kGroup && cols % kGroup == 0;
    for (const DType dtype : types)
        wide = wide && (is_low_bit(dtype) || !is_block_quantized(dtype));
    if (!wide) return c.random(rows, cols, gap, shift);
    uint32_t state = 1;
    const auto value = [state](int64_t r, int64_t k) mutable {
        state = state * 1664525 + 1013904223;
        const int code = k % kGroup == r % kGroup ? -127 : static_cast<int>(state >> 8) % 128;
        return static_cast<float>(state >> 31 ? -code : code) * (r % 3 == 0   ? 0x1p-7f
                                                                 : r % 3 == 1 ? 0x1p-3f
                                                                              : 0x1p-9f);
    };
    return c.filled(rows, cols, value, gap, shift);
}

// Where the device may round scales of low-bit weights to 127ths of their row's largest, scales for
// which it has nothing to round: 6 to 127 times a power of two, some negative, a row of zeros.
float scale_to_fold(int64_t row, int64_t group) {
    if (row % 50 == 49) return 0;
    const int64_t ratio =
        group == 0 || group % 3 == row % 3 ? 127 : 6 + (row * 31 + group * 57) % 121;
    const float unit = row % 2 ? 0x1p-10f : 0x1p-13f;
    return static_cast<float>((row + group) % 5 == 4 ? -ratio : ratio) * unit;
}

Operand weights(Case& c, Precision precision, DType dtype, int64_t rows, int64_t cols) {
    if (precision == Precision::kFast) return c.weight(dtype, rows, cols, scale_to_fold);
    return c.weight(dtype, rows, cols);
}

void run_plain(Pair& pair, Precision precision, DType dtype, const Shape& s) {
    Case c(pair, name_of(dtype, s, "plain"));
    const Operand x = inputs(c, pair, precision, {dtype}, s.rows, s.in),
                  w = weights(c, precision, dtype, s.out, s.in), y = c.room(s.rows, s.out);
    c.run([&](Side side) { return side.backend.linear(linear_args(x[side], w[side], y[side])); });
    c.expect_close(y, tolerance(pair, precision, dtype));
}

// Strided rows that begin anywhere, bias, accumulation and gate.
void run_added(Pair& pair, Precision precision, DType dtype, const Shape& s) {
    Case c(pair, name_of(dtype, s, "strided, bias, accumulate, gate"));
    const Operand x = inputs(c, pair, precision, {dtype}, s.rows, s.in, 5, 3),
                  w = weights(c, precision, dtype, s.out, s.in), bias = c.random(1, s.out),
                  gate = c.random(1, s.out, 0, 1), y = c.random(s.rows, s.out, 7, 1);
    c.run([&](Side side) {
        LinearArgs args = linear_args(x[side], w[side], y[side]);
        Projection& p = args.projections[0];
        p.bias = bias[side];
        p.accumulate = true;
        p.gate = gate[side];
        return side.backend.linear(args);
    });
    c.expect_close(y, tolerance(pair, precision, dtype));
}

void run_three(Pair& pair, Precision precision, const DType (&types)[3], const Shape& s) {
    Case c(pair, name_of(types[0], s, "three projections"));
    const Operand x = inputs(c, pair, precision, {types[0], types[1], types[2]}, s.rows, s.in, 4,
                             4),
                  y = c.random(s.rows, 3 * s.out + 40, 4, 0);
    const int64_t sizes[3] = {s.out, s.out + 16, s.out + 24};
    Operand parts[3];
    for (int i = 0; i < 3; ++i)
        parts[i] = weights(c, precision, types[i], sizes[i], s.in);
    c.run([&](Side side) {
        LinearArgs args;
        args.x = x[side];
        int64_t at = 0;
        for (int i = 0; i < 3; ++i) {
            args.projections[i].weight = parts[i][side];
            args.projections[i].out = y.cols(at, sizes[i])[side];
            args.projections[i].accumulate = i == 1;
            at += sizes[i];
        }
        args.count = 3;
        return side.backend.linear(args);
    });
    c.expect_close(y, tolerance(pair, precision, types[0]));
}

void run_all(Precision precision) {
    for_each_device(precision, [&](Pair& pair) {
        for (int i = 0; i < kDTypeCount; ++i)
            for (const Shape& s : kShapes) {
                run_plain(pair, precision, static_cast<DType>(i), s);
                run_added(pair, precision, static_cast<DType>(i), s);
            }
        for (const Shape& s : {Shape{3, 48, 128}, Shape{40, 144, 256}, Shape{200, 128, 384}}) {
            run_three(pair, precision, {DType::kPQ2_0, DType::kPQ2_0, DType::kPQ2_0}, s);
            run_three(pair, precision, {DType::kQ4_0, DType::kQ8_0, DType::kQ4_0}, s);
            run_three(pair, precision, {DType::kQ1_0, DType::kBF16, DType::kPTQ1_0}, s);
        }
    });
}

} // namespace

TEST(device_linear_fast) {
    run_all(Precision::kFast);
}

TEST(device_linear_exact) {
    run_all(Precision::kExact);
}

// Widths that only float types and blocks of 32 have.
TEST(device_linear_widths) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        for (const int64_t rows : {2, 9, 70}) {
            for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
                for (const int64_t in : {1, 31, 66, 250})
                    run_added(pair, Precision::kExact, dtype, {rows, 37, in});
            for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1})
                for (const int64_t in : {32, 96, 160})
                    run_added(pair, Precision::kExact, dtype, {rows, 37, in});
        }
    });
}

// Float activations where the call asks for them; rows whose magnitudes lie far apart.
TEST(device_linear_outliers) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        for (const DType dtype : {DType::kQ8_0, DType::kPQ2_0, DType::kBF16}) {
            Case c(pair, format("%s, outliers", dtype_info(dtype).name));
            const Operand x = c.filled(40, 256, [](int64_t m, int64_t k) {
                const float small = static_cast<float>((m * 37 + k * 101) % 255 - 127) / 127.0f;
                return k == 3 ? 3e5f * small : m % 2 ? 1e-6f * small : small;
            });
            const Operand w = c.weight(dtype, 72, 256), y = c.room(40, 72);
            c.run([&](Side side) {
                LinearArgs args = linear_args(x[side], w[side], y[side]);
                args.exact = true;
                return side.backend.linear(args);
            });
            c.expect_close(y, kExactTolerance);
        }
    });
}

// Slices of rows of one weight, as the transformer takes q, k, v and the MLP out of one matrix.
TEST(device_linear_slices) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        for (const DType dtype : {DType::kPTQ1_0, DType::kQ1_0, DType::kQ4_1, DType::kF16}) {
            Case c(pair, format("%s, slices", dtype_info(dtype).name));
            const Operand x = inputs(c, pair, Precision::kFast, {dtype}, 50, 256),
                          w = weights(c, Precision::kFast, dtype, 336, 256), y = c.random(50, 336);
            c.run([&](Side side) {
                LinearArgs args;
                args.x = x[side];
                int64_t at = 0;
                for (const int64_t count : {192, 128, 16}) {
                    Projection& p = args.projections[args.count++];
                    p.weight = w.rows(at, count)[side];
                    p.out = y.cols(at, count)[side];
                    at += count;
                }
                return side.backend.linear(args);
            });
            c.expect_close(y, std::max(kExactTolerance, tolerance(pair, Precision::kFast, dtype)));
        }
    });
}

// Scales that do not fold: s becomes r m / 127 for a whole r and the row's largest m, at most m /
// 254 off, and group g of the K / 128 brings (s_g - r_g m / 127) D_g to a result where it owes s_g
// D_g. D_g are sums of as many products of the same kind, so the error stays below sqrt(K / 128) /
// 254 of the largest result, up to which only a largest scale that stands alone could bring it.
TEST(device_linear_folded) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        for (const DType dtype : {DType::kPQ2_0, DType::kQ1_0, DType::kPTQ1_0})
            for (const Shape& s : {Shape{40, 100, 640}, Shape{200, 300, 1152}}) {
                Case c(pair, name_of(dtype, s, "scales that do not fold"));
                const Operand x = inputs(c, pair, Precision::kFast, {dtype}, s.rows, s.in);
                const auto scale = [](int64_t row, int64_t group) {
                    return 0.01f + 0.001f * static_cast<float>((row * 37 + group * 101) % 191);
                };
                const Operand w = c.weight(dtype, s.out, s.in, scale), y = c.room(s.rows, s.out);
                c.run([&](Side side) {
                    return side.backend.linear(linear_args(x[side], w[side], y[side]));
                });
                c.expect_close(y, std::sqrt(static_cast<double>(s.in) / 128) / 254);
            }
    });
}

// A scale that is not finite spoils its row and no other.
TEST(device_linear_scale_not_finite) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        for (const DType dtype : {DType::kPQ2_0, DType::kQ1_0}) {
            Case c(pair, format("%s, a scale that is not finite", dtype_info(dtype).name));
            const Operand x = c.random(20, 640), y = c.room(20, 48);
            const Operand w = c.weight(dtype, 48, 640, [](int64_t row, int64_t group) {
                if (group == 3 && row == 5) return std::numeric_limits<float>::infinity();
                if (group == 4 && row == 30) return std::numeric_limits<float>::quiet_NaN();
                return 0.125f;
            });
            c.run([&](Side side) {
                return side.backend.linear(linear_args(x[side], w[side], y[side]));
            });
            std::vector<float> found(20 * 48);
            CHECK_OK(pair.device->read(y.on[1], found.data()));
            for (size_t i = 0; i < found.size(); ++i)
                CHECK(std::isfinite(found[i]) == (i % 48 != 5 && i % 48 != 30));
        }
    });
}

} // namespace backend_test
