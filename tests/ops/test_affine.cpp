// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

static void compare(int64_t rows, int64_t channels, float amplitude) {
    Random random(static_cast<uint64_t>(rows * 100 + channels));
    Matrix x(rows, channels, 3, random, amplitude), affine(2, channels, 5, random);
    Expected expected;
    for (int64_t p = 0; p < rows; ++p)
        for (int64_t c = 0; c < channels; ++c)
            expected.push_back(static_cast<double>(affine.at(0, c)) * x.at(p, c) + affine.at(1, c));
    for (const KernelTable* table : levels()) {
        Matrix out(rows, channels, 2);
        CHECK_OK(check(AffineArgs{x.tensor(), affine.tensor(), out.tensor()}));
        CHECK(same_in_pieces(rows, out, [&](Range r) {
            table->affine({x.tensor(), affine.tensor(), out.tensor()}, r);
        }));
        CHECK(worst(out, expected, 1e-30) < 1.3e-7); // one rounding
        CHECK(out.intact());
        Matrix in_place = x;
        table->affine({in_place.tensor(), affine.tensor(), in_place.tensor()}, {0, rows});
        CHECK(worst(in_place, expected, 1e-30) < 1.3e-7);
    }
}

TEST(shapes) {
    for (int64_t channels : {1, 3, 8, 12, 96, 512})
        for (int64_t rows : {1, 5, 64})
            compare(rows, channels, 4.0f);
}

TEST(extremes) {
    compare(4, 100, 1e-41f);
    compare(4, 100, 1e30f);
}
