// SPDX-License-Identifier: Apache-2.0
// linear beside the CPU's exact sums: what float products of a device keep of rows of any
// magnitude, with weights of all types, in both precisions.
#include <cmath>

#include "device_case.h"

namespace backend_test {

namespace {

// Two 16-bit terms for each factor; one of f16 (2^-11 of a factor, errors that add like noise); or
// one scale for each token and 128 or 512 inputs.
constexpr double kExactTolerance = 3e-5, kHalfTolerance = 1e-3, kCodesTolerance = 2e-2;

double tolerance(const Pair& pair, Precision precision, DType dtype) {
    if (precision == Precision::kExact || !is_block_quantized(dtype)) return kExactTolerance;
    const bool halves = pair.device->device().features == "sm_90" && !is_low_bit(dtype);
    return halves ? kHalfTolerance : kCodesTolerance;
}

void for_all_types(Precision precision, const std::function<void(Pair& pair, DType dtype)>& body) {
    for_each_device(precision, Precision::kExact, [&](Pair& pair) {
        for (int i = 0; i < kDTypeCount; ++i)
            body(pair, static_cast<DType>(i));
    });
}

struct Shape {
    int64_t rows, out, in;
};
// Around tiles of 128 tokens and 256 features; several tiles; K that is cut between blocks.
const Shape kShapes[] = {{5, 16, 128},    {127, 255, 256}, {128, 256, 384},
                         {129, 257, 512}, {520, 784, 128}, {40, 16, 2560}};

void run_shape(Pair& pair, Precision precision, DType dtype, const Shape& s) {
    Case c(pair,
           format("%s, %lld x %lld x %lld", dtype_info(dtype).name, static_cast<long long>(s.rows),
                  static_cast<long long>(s.out), static_cast<long long>(s.in)));
    const Operand x = c.random(s.rows, s.in, 3, 1), w = c.weight(dtype, s.out, s.in),
                  bias = c.random(1, s.out), gate = c.random(1, s.out, 0, 1),
                  y = c.random(s.rows, s.out, 5, 2), plain = c.room(s.rows, s.out);
    c.run([&](Side side) {
        LinearArgs args = linear_args(x[side], w[side], y[side]);
        args.projections[0].bias = bias[side];
        args.projections[0].accumulate = true;
        args.projections[0].gate = gate[side];
        args.projections[1].weight = w[side];
        args.projections[1].out = plain[side];
        args.count = 2;
        return side.backend.linear(args);
    });
    c.expect_close(y, tolerance(pair, precision, dtype));
    c.expect_close(plain, tolerance(pair, precision, dtype));
}

// Every row is a multiple of one row, from where f16 is infinite to where floats end; the results
// are compared row by row.
void run_magnitudes(Pair& pair, Precision precision, DType dtype) {
    constexpr int64_t kRows = 12, kIn = 256, kOut = 48;
    const float factors[kRows] = {1,      0,      1e6f,   7e4f,  3e30f,  1e-6f,
                                  1e-30f, -1e20f, 2e-12f, 65504, 3e-29f, 1e9f};
    Case c(pair, format("%s, magnitudes", dtype_info(dtype).name));
    const Operand x = c.filled(kRows, kIn, [&](int64_t m, int64_t k) {
        return factors[m] * static_cast<float>((k * 101 + 17) % 255 - 127) / 127.0f;
    });
    const Operand w = c.weight(dtype, kOut, kIn), y = c.room(kRows, kOut);
    c.run([&](Side side) { return side.backend.linear(linear_args(x[side], w[side], y[side])); });
    for (int64_t m = 0; m < kRows; ++m)
        if (factors[m] != 0) c.expect_close(y.rows(m, 1), tolerance(pair, precision, dtype));
    std::vector<float> zero(static_cast<size_t>(kOut), 1.0f);
    CHECK_OK(pair.device->read(y.rows(1, 1).on[1], zero.data()));
    for (const float value : zero)
        CHECK(value == 0);
}

// A row with an infinity or a NaN stays by itself, and does not look finite.
void run_not_finite(Pair& pair, Precision precision, DType dtype) {
    constexpr int64_t kRows = 9, kIn = 256, kOut = 40;
    Case c(pair, format("%s, not finite", dtype_info(dtype).name));
    const Operand x = c.filled(kRows, kIn, [&](int64_t m, int64_t k) {
        if (m == 2 && k == 77) return INFINITY;
        if (m == 5 && k == 128) return NAN;
        if (m == 6 && k == 3) return -INFINITY;
        return static_cast<float>((m * 37 + k * 101) % 255 - 127) / 127.0f;
    });
    const Operand w = c.weight(dtype, kOut, kIn),
                  y = c.filled(kRows, kOut, [](int64_t, int64_t) { return 0.0f; });
    c.run([&](Side side) { return side.backend.linear(linear_args(x[side], w[side], y[side])); });
    for (const int64_t m : {0, 1, 3, 4, 7, 8})
        c.expect_close(y.rows(m, 1), tolerance(pair, precision, dtype));
    std::vector<float> row(static_cast<size_t>(kOut));
    for (const int64_t m : {2, 5, 6}) {
        CHECK_OK(pair.device->read(y.rows(m, 1).on[1], row.data()));
        for (const float value : row)
            CHECK(!std::isfinite(value));
    }
}

} // namespace

TEST(device_linear_half_exact) {
    for_all_types(Precision::kExact, [](Pair& pair, DType dtype) {
        for (const Shape& s : kShapes)
            run_shape(pair, Precision::kExact, dtype, s);
    });
}

TEST(device_linear_half_fast) {
    for_all_types(Precision::kFast, [](Pair& pair, DType dtype) {
        for (const Shape& s : kShapes)
            run_shape(pair, Precision::kFast, dtype, s);
    });
}

TEST(device_linear_half_rows) {
    for (const Precision precision : {Precision::kExact, Precision::kFast})
        for_all_types(precision, [&](Pair& pair, DType dtype) {
            run_magnitudes(pair, precision, dtype);
            run_not_finite(pair, precision, dtype);
        });
}

} // namespace backend_test
