// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

static Expected formula(const Matrix& x, const Matrix& scale, const Matrix& shift, double eps) {
    Expected out;
    const auto width = static_cast<double>(x.cols());
    for (int64_t r = 0; r < x.rows(); ++r) {
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < x.cols(); ++c)
            mean += x.at(r, c) / width;
        for (int64_t c = 0; c < x.cols(); ++c)
            variance += (x.at(r, c) - mean) * (x.at(r, c) - mean) / width;
        for (int64_t c = 0; c < x.cols(); ++c)
            out.push_back((1.0 + scale.at(0, c)) * (x.at(r, c) - mean) / std::sqrt(variance + eps) +
                          shift.at(0, c));
    }
    return out;
}

static void compare(Matrix x, float eps, double tolerance = 3e-7) {
    Random random(8);
    Matrix scale(1, x.cols(), 0, random), shift(1, x.cols(), 0, random);
    const Expected expected = formula(x, scale, shift, eps);
    for (const KernelTable* table : levels()) {
        Matrix out(x.rows(), x.cols(), 3);
        CHECK_OK(
            check(LayerNormArgs{x.tensor(), scale.tensor(), shift.tensor(), out.tensor(), eps}));
        CHECK(same_in_pieces(x.rows(), out, [&](Range rows) {
            table->layer_norm({x.tensor(), scale.tensor(), shift.tensor(), out.tensor(), eps},
                              rows);
        }));
        CHECK(rel_l2(out, expected) < tolerance);
        CHECK(worst(out, expected, 1.0) < 3 * tolerance);
        CHECK(out.intact());
    }
}

TEST(shapes) {
    Random random(1);
    for (int64_t width : {1, 3, 8, 13, 64, 257, 3072})
        for (int64_t rows : {1, 6, 33})
            compare(Matrix(rows, width, 5, random, 3.0f), 1e-6f);
}

// A constant row has variance 0: what is left is the shift, exactly.
TEST(constant_rows) {
    for (float value : {0.0f, 1e-41f, 0.1f, -12345.678f, 1e20f}) {
        Matrix x(2, 3072, 0);
        x.fill([&](int64_t, int64_t) { return value; });
        Random random(3);
        Matrix scale(1, 3072, 0, random), shift(1, 3072, 0, random);
        for (const KernelTable* table : levels()) {
            Matrix out(2, 3072);
            table->layer_norm({x.tensor(), scale.tensor(), shift.tensor(), out.tensor(), 1e-6f},
                              {0, 2});
            bool equal = true;
            for (int64_t c = 0; c < 3072; ++c)
                equal = equal && out.at(1, c) == shift.at(0, c);
            CHECK(equal);
        }
    }
}

TEST(extremes) {
    Random random(2);
    compare(Matrix(3, 515, 0, random, 1e-40f), 1e-6f);
    compare(Matrix(3, 515, 0, random, 1e18f), 1e-6f);
    Matrix far(3, 1024, 0, random); // a large mean and a small spread
    far.fill([&](int64_t, int64_t) { return 1000.0f + random.uniform() * 0.01f; });
    compare(far, 1e-6f);
    Matrix outlier(2, 3072, 0, random);
    outlier.at(0, 17) = 3e4f;
    compare(outlier, 1e-6f);
}
