// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

static Expected formula(const Matrix& x, const Matrix& gain, double eps) {
    Expected out;
    for (int64_t r = 0; r < x.rows(); ++r) {
        double squares = 0;
        for (int64_t c = 0; c < x.cols(); ++c)
            squares += std::pow(static_cast<double>(x.at(r, c)), 2);
        for (int64_t c = 0; c < x.cols(); ++c)
            out.push_back(x.at(r, c) / std::sqrt(squares / static_cast<double>(x.cols()) + eps) *
                          gain.at(0, c));
    }
    return out;
}

// Each number is rounded three times at most: 2e-7 leaves room for the root of the mean.
static void compare(Matrix x, float eps) {
    Random random(7);
    Matrix gain(1, x.cols(), 0, random);
    const Expected expected = formula(x, gain, eps);
    for (const KernelTable* table : levels()) {
        Matrix out(x.rows(), x.cols(), 3);
        const RmsNormArgs args = {x.tensor(), gain.tensor(), out.tensor(), eps};
        CHECK_OK(check(args));
        CHECK(same_in_pieces(x.rows(), out, [&](Range rows) {
            table->rms_norm({x.tensor(), gain.tensor(), out.tensor(), eps}, rows);
        }));
        CHECK(worst(out, expected, 1e-30) < 3e-7);
        CHECK(out.intact());
        Matrix in_place = x;
        table->rms_norm({in_place.tensor(), gain.tensor(), in_place.tensor(), eps}, {0, x.rows()});
        CHECK(worst(in_place, expected, 1e-30) < 3e-7);
        CHECK(in_place.intact());
    }
}

TEST(shapes) {
    Random random(1);
    for (int64_t width : {1, 2, 7, 8, 9, 31, 64, 129, 2560})
        for (int64_t rows : {1, 5, 33})
            compare(Matrix(rows, width, 5, random, 3.0f), 1e-6f);
}

TEST(extremes) {
    Random random(2);
    compare(Matrix(3, 515, 0, random, 1e-40f), 1e-6f);
    compare(Matrix(3, 515, 0, random, 1e18f), 1e-6f);
    Matrix zeros(2, 100, 1), outlier(2, 2560, 0, random);
    zeros.fill([](int64_t, int64_t) { return 0.0f; });
    compare(zeros, 1e-6f);
    outlier.at(0, 17) = 3e4f;
    compare(outlier, 1e-6f);
}
