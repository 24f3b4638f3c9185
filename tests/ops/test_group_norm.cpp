// SPDX-License-Identifier: Apache-2.0
#include "ops/op_test.h"

using namespace op_test;

static GroupNormArgs args_of(Matrix& x, int groups) {
    GroupNormArgs args;
    args.x = x.tensor();
    args.groups = groups;
    return args;
}

// Sums of doubles: only the order of additions differs from the formula.
static void compare(Matrix x, int groups) {
    const int64_t channels = x.cols() / groups;
    std::vector<double> expected(static_cast<size_t>(groups) * 2), size(expected.size());
    for (int64_t p = 0; p < x.rows(); ++p) {
        for (int64_t c = 0; c < x.cols(); ++c) {
            const double value = x.at(p, c);
            const auto g = static_cast<size_t>(c / channels);
            expected[2 * g] += value;
            expected[2 * g + 1] += value * value;
            size[2 * g] += std::fabs(value);
            size[2 * g + 1] += value * value;
        }
    }
    for (const KernelTable* table : levels()) {
        std::vector<double> sums(expected.size(), 100.0), cut(expected.size(), 100.0);
        table->group_sums(args_of(x, groups), {0, x.rows()}, sums.data());
        const int64_t middle = x.rows() / 3;
        table->group_sums(args_of(x, groups), {0, middle}, cut.data());
        table->group_sums(args_of(x, groups), {middle, x.rows()}, cut.data());
        for (size_t i = 0; i < sums.size(); ++i) {
            CHECK(std::fabs(sums[i] - 100.0 - expected[i]) <= 1e-12 * (size[i] + 100.0));
            CHECK(std::fabs(cut[i] - 100.0 - expected[i]) <= 1e-12 * (size[i] + 100.0));
        }
        CHECK(x.intact());
    }
}

TEST(shapes) {
    Random random(1);
    for (int64_t pixels : {1, 31, 33, 1000}) {
        compare(Matrix(pixels, 128, 0, random), 32);
        compare(Matrix(pixels, 512, 4, random), 32);
        compare(Matrix(pixels, 96, 0, random), 32);
        compare(Matrix(pixels, 35, 1, random), 7);
        compare(Matrix(pixels, 1, 0, random), 1);
        compare(Matrix(pixels, 1030, 0, random), 2); // a group across two passes of 512 channels
    }
}

// A spread of 0.01 around 1000: the variance still has three digits, which needs the sums in
// double.
TEST(large_mean) {
    Random random(2);
    Matrix x(4096, 64, 0);
    x.fill([&](int64_t, int64_t) { return 1000.0f + 1e-2f * random.uniform(); });
    compare(x, 32);
    double mean = 0, variance = 0;
    const double count = 4096 * 2;
    for (int64_t p = 0; p < 4096; ++p)
        mean += (x.at(p, 0) + static_cast<double>(x.at(p, 1))) / count;
    for (int64_t p = 0; p < 4096; ++p)
        variance += (std::pow(x.at(p, 0) - mean, 2) + std::pow(x.at(p, 1) - mean, 2)) / count;
    for (const KernelTable* table : levels()) {
        std::vector<double> sums(64);
        table->group_sums(args_of(x, 32), {0, 4096}, sums.data());
        const double found = sums[1] / count - (sums[0] / count) * (sums[0] / count);
        CHECK(std::fabs(found / variance - 1) < 2e-3);
        CHECK(std::fabs(sums[0] / count / mean - 1) < 1e-13);
    }
}

TEST(extremes) {
    Random random(3);
    compare(Matrix(100, 64, 0, random, 1e-40f), 32);
    compare(Matrix(100, 64, 0, random, 1e18f), 32);
    Matrix constant(200, 64, 0);
    constant.fill([](int64_t, int64_t) { return -7.25f; });
    compare(constant, 32);
}
