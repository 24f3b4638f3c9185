// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

static void compare(Matrix gate, Matrix up) {
    Expected expected;
    for (int64_t r = 0; r < gate.rows(); ++r)
        for (int64_t c = 0; c < gate.cols(); ++c)
            expected.push_back(gate.at(r, c) /
                               (1.0 + std::exp(-static_cast<double>(gate.at(r, c)))) * up.at(r, c));
    for (const KernelTable* table : levels()) {
        Matrix out(gate.rows(), gate.cols(), 2);
        CHECK_OK(check(SwigluArgs{gate.tensor(), up.tensor(), out.tensor()}));
        CHECK(same_in_pieces(gate.rows(), out, [&](Range rows) {
            table->swiglu({gate.tensor(), up.tensor(), out.tensor()}, rows);
        }));
        CHECK(worst(out, expected, 1e-25) < 5e-7);
        CHECK(out.intact());
        Matrix in_place = gate;
        table->swiglu({in_place.tensor(), up.tensor(), in_place.tensor()}, {0, gate.rows()});
        CHECK(worst(in_place, expected, 1e-25) < 5e-7);
        CHECK(in_place.intact());
    }
}

TEST(shapes) {
    Random random(1);
    for (int64_t width : {1, 5, 8, 15, 64, 9216}) {
        for (int64_t rows : {1, 4, 33})
            compare(Matrix(rows, width, 3, random, 10.0f), Matrix(rows, width, 7, random, 4.0f));
    }
}

TEST(extremes) {
    Random random(2);
    compare(Matrix(2, 500, 0, random, 200.0f), Matrix(2, 500, 0, random, 1e4f));
    compare(Matrix(2, 500, 0, random, 1e-41f), Matrix(2, 500, 0, random));
    compare(Matrix(2, 500, 0, random, 1e18f), Matrix(2, 500, 0, random, 1e18f));
}

// Gate and up as the two halves of one fused buffer, the result in place of the first.
TEST(halves_of_a_buffer) {
    Random random(3);
    const int64_t width = 52;
    const Matrix fused(9, 2 * width, 4, random, 5.0f);
    for (const KernelTable* table : levels()) {
        Matrix buffer = fused;
        const Tensor gate = buffer.tensor().slice_cols(0, width),
                     up = buffer.tensor().slice_cols(width, width);
        table->swiglu({gate, up, gate}, {0, 9});
        double largest = 0;
        bool second_half_kept = true;
        for (int64_t r = 0; r < 9; ++r) {
            for (int64_t c = 0; c < width; ++c) {
                const double g = fused.at(r, c),
                             expected = g / (1.0 + std::exp(-g)) * fused.at(r, width + c);
                largest = std::fmax(largest, std::fabs(buffer.at(r, c) - expected));
                second_half_kept =
                    second_half_kept && buffer.at(r, width + c) == fused.at(r, width + c);
            }
        }
        CHECK(largest < 1e-5);
        CHECK(second_half_kept);
        CHECK(buffer.intact());
    }
}
