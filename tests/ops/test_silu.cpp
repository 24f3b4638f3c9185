// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

// exp is good to 8e-8 and the quotient is rounded twice more. Results below 1e-35 count as zero:
// far below any activation.
static void compare(Matrix x) {
    Expected expected;
    for (int64_t r = 0; r < x.rows(); ++r)
        for (int64_t c = 0; c < x.cols(); ++c)
            expected.push_back(x.at(r, c) / (1.0 + std::exp(-static_cast<double>(x.at(r, c)))));
    for (const KernelTable* table : levels()) {
        Matrix out(x.rows(), x.cols(), 2);
        CHECK_OK(check(SiluArgs{x.tensor(), out.tensor()}));
        CHECK(same_in_pieces(x.rows(), out,
                             [&](Range rows) { table->silu({x.tensor(), out.tensor()}, rows); }));
        CHECK(worst(out, expected, 1e-28) < 4e-7);
        CHECK(out.intact());
        Matrix in_place = x;
        table->silu({in_place.tensor(), in_place.tensor()}, {0, x.rows()});
        CHECK(worst(in_place, expected, 1e-28) < 4e-7);
        CHECK(in_place.intact());
    }
}

TEST(shapes) {
    Random random(1);
    for (int64_t width : {1, 5, 8, 15, 64, 3072})
        for (int64_t rows : {1, 4, 33})
            compare(Matrix(rows, width, 3, random, 10.0f));
}

// Every magnitude, both signs, across the limits of exp.
TEST(range) {
    Matrix x(2, 40000);
    x.fill(
        [](int64_t r, int64_t c) { return static_cast<float>(c) * (r == 0 ? -0.005f : 0.005f); });
    compare(x);
    Random random(2);
    compare(Matrix(1, 100, 0, random, 1e-41f));
    compare(Matrix(1, 100, 0, random, 1e-10f));
    compare(Matrix(1, 100, 0, random, 3e38f));
}

TEST(nan_shows) {
    Matrix x(1, 11);
    x.fill([](int64_t, int64_t c) { return c % 2 == 0 ? NAN : 1.0f; });
    for (const KernelTable* table : levels()) {
        Matrix out(1, 11);
        table->silu({x.tensor(), out.tensor()}, {0, 1});
        CHECK(std::isnan(out.at(0, 0)) && !std::isnan(out.at(0, 1)) && std::isnan(out.at(0, 10)));
    }
}
