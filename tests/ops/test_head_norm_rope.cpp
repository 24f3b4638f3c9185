// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

struct Case {
    int64_t rows;
    int heads, head_dim;
    RopePairs pairs;
    float amplitude;
};

// As a product of complex numbers, (a + i b) (cos + i sin), head by head.
static Expected formula(const Case& c, const Matrix& x, const Matrix& gain, const Matrix& cosine,
                        const Matrix& sine, double eps) {
    Expected out(static_cast<size_t>(x.rows() * x.cols()));
    const int half = c.head_dim / 2;
    for (int64_t r = 0; r < x.rows(); ++r) {
        for (int64_t base = 0; base < x.cols(); base += c.head_dim) {
            double squares = 0;
            for (int d = 0; d < c.head_dim; ++d)
                squares += std::pow(static_cast<double>(x.at(r, base + d)), 2);
            const double root = std::sqrt(squares / c.head_dim + eps);
            for (int i = 0; i < half; ++i) {
                const int p = c.pairs == RopePairs::kHalves ? i : 2 * i;
                const int q = c.pairs == RopePairs::kHalves ? half + i : 2 * i + 1;
                const double a = x.at(r, base + p) / root * gain.at(0, p),
                             b = x.at(r, base + q) / root * gain.at(0, q);
                double* row = out.data() + r * x.cols() + base;
                row[p] = a * cosine.at(r, i) - b * sine.at(r, i);
                row[q] = a * sine.at(r, i) + b * cosine.at(r, i);
            }
        }
    }
    return out;
}

static void compare(const Case& c) {
    Random random(static_cast<uint64_t>(c.rows * 1000 + c.head_dim));
    const Matrix x(c.rows, static_cast<int64_t>(c.heads) * c.head_dim, 11, random, c.amplitude);
    Matrix gain(1, c.head_dim, 0, random), cosine(c.rows, c.head_dim / 2, 2),
        sine(c.rows, c.head_dim / 2, 0);
    const auto angle = [](int64_t r, int64_t i) {
        return static_cast<float>(r + 1) / static_cast<float>(i + 1);
    };
    cosine.fill([&](int64_t r, int64_t i) { return std::cos(angle(r, i)); });
    sine.fill([&](int64_t r, int64_t i) { return std::sin(angle(r, i)); });
    const Expected expected = formula(c, x, gain, cosine, sine, 1e-6f);
    for (const KernelTable* table : levels()) {
        Matrix out = x;
        const auto args = [&] {
            HeadNormRopeArgs args;
            args.x = out.tensor();
            args.gain = gain.tensor();
            args.cos = cosine.tensor();
            args.sin = sine.tensor();
            args.head_dim = c.head_dim;
            args.pairs = c.pairs;
            args.eps = 1e-6f;
            return args;
        };
        CHECK_OK(check(args()));
        CHECK(
            same_in_pieces(c.rows, out, [&](Range rows) { table->head_norm_rope(args(), rows); }));
        CHECK(rel_l2(out, expected) < 3e-7);
        CHECK(worst(out, expected, 1.0) < 1e-6);
        CHECK(out.intact());
    }
}

TEST(shapes) {
    for (RopePairs pairs : {RopePairs::kHalves, RopePairs::kNeighbours})
        for (int head_dim : {2, 6, 8, 16, 22, 64, 128})
            for (int heads : {1, 3})
                compare({5, heads, head_dim, pairs, 2.0f});
}

TEST(model_shapes) {
    compare({40, 24, 128, RopePairs::kNeighbours, 5.0f});
    compare({40, 8, 128, RopePairs::kHalves, 5.0f});
}

TEST(extremes) {
    for (RopePairs pairs : {RopePairs::kHalves, RopePairs::kNeighbours})
        for (float amplitude : {0.0f, 1e-40f, 1e18f})
            compare({3, 2, 128, pairs, amplitude});
}
