// SPDX-License-Identifier: Apache-2.0
// Linear layers at every CPU level against sums in double of the decoded weights, and the rules
// that all levels share.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/linear_case.h"

using namespace op_test;

namespace {

// One call for the whole product.
void run(const KernelTable& table, Layer& layer, bool fast) {
    Scratch scratch;
    const Range rows = {0, layer.x.rows}, cols = {0, layer.out.cols};
    if (fast) {
        const Codes codes(table, layer.x.view);
        CHECK(table.linear_fast(codes.view, layer.projection, rows, cols, scratch));
    } else {
        CHECK(table.linear_exact(layer.x.view, layer.projection, rows, cols, scratch));
    }
    CHECK(layer.out.intact());
}

// x W^T in double, with the size of such a sum when its products do not happen to cancel: at least
// the root of the sum of their squares.
struct Truth {
    std::vector<double> y, size;
};
Truth truth(const Layer& layer, const std::vector<float>& x) {
    const int64_t k_count = layer.x.cols;
    std::vector<float> w(static_cast<size_t>(k_count));
    Truth t;
    t.y.resize(static_cast<size_t>(layer.out.rows * layer.out.cols));
    t.size = t.y;
    for (int64_t n = 0; n < layer.out.cols; ++n) {
        dequantize_row(layer.projection.weight.dtype, layer.projection.weight.packed_row(n),
                       w.data(), k_count);
        for (int64_t m = 0; m < layer.out.rows; ++m) {
            double sum = 0, squares = 0;
            for (int64_t k = 0; k < k_count; ++k) {
                const double product =
                    static_cast<double>(x[static_cast<size_t>(m * k_count + k)]) *
                    w[static_cast<size_t>(k)];
                sum += product;
                squares += product * product;
            }
            t.y[static_cast<size_t>(m * layer.out.cols + n)] = sum;
            t.size[static_cast<size_t>(m * layer.out.cols + n)] =
                std::max(std::fabs(sum), std::sqrt(squares));
        }
    }
    return t;
}

// The worst row's relative L2 error: a row of large values must not hide the others. Rows below
// 1e-30 count as of that size.
double relative_l2(const Layer& layer, const Truth& expected) {
    double worst = 0;
    for (int64_t m = 0; m < layer.out.rows; ++m) {
        double error = 0, size = 1e-60;
        for (int64_t n = 0; n < layer.out.cols; ++n) {
            const auto i = static_cast<size_t>(m * layer.out.cols + n);
            const double difference = layer.out.view.row(m)[n] - expected.y[i];
            error += difference * difference;
            size += expected.size[i] * expected.size[i];
        }
        worst = std::max(worst, std::sqrt(error / size));
    }
    return worst;
}

// Fails with the place and the case.
void expect_below(double value, double bound, const char* what, const KernelTable& table,
                  const Layer& layer, int line) {
    if (value <= bound) return;
    char text[200];
    std::snprintf(text, sizeof text, "%s: %g above %g (%s %s M=%d N=%d K=%d)", what, value, bound,
                  table.level, dtype_info(layer.projection.weight.dtype).name,
                  static_cast<int>(layer.x.rows), static_cast<int>(layer.out.cols),
                  static_cast<int>(layer.x.cols));
    ::test::failed(__FILE__, line, text);
}

struct Shape {
    int64_t m, n, k;
};
// One, odd, tails of registers, panels, tiles and depths, and the model's own widths, which are the
// slow ones.
const Shape kShapes[] = {{1, 1, 128},     {1, 17, 256},   {5, 7, 384},   {6, 16, 128},
                         {7, 65, 640},    {13, 9, 1024},  {515, 3, 256}, {77, 128, 2560},
                         {2, 130, 12288}, {130, 800, 256}};
std::vector<Shape> shapes() {
    std::vector<Shape> all(std::begin(kShapes), std::end(kShapes));
    if (::test::brief())
        all.erase(std::remove_if(all.begin(), all.end(),
                                 [](const Shape& s) { return s.m * s.n * s.k > 1 << 20; }),
                  all.end());
    return all;
}
const Shape kFloatShapes[] = {{1, 1, 1},    {4, 9, 3},   {9, 5, 37},
                              {6, 24, 255}, {3, 3, 257}, {2, 20, 300}};
const Shape kBlockShapes[] = {{3, 10, 32}, {7, 5, 96}, {2, 17, 288}};

void check_exact(DType dtype, const Shape& s) {
    for (const KernelTable* table : levels()) {
        Layer layer(dtype, s.m, s.n, s.k);
        run(*table, layer, false);
        // Sums of f32 products in blocks of 256 stay near 4e-7; the reference only rounds the
        // result.
        expect_below(relative_l2(layer, truth(layer, layer.x.values())), 2e-6, "exact", *table,
                     layer, __LINE__);
    }
}

} // namespace

TEST(exact_matches_double) {
    for (DType dtype : kAllTypes) {
        for (const Shape& s : shapes())
            check_exact(dtype, s);
        for (const Shape& s : kFloatShapes)
            if (!is_block_quantized(dtype)) check_exact(dtype, s);
        for (const Shape& s : kBlockShapes)
            if (dtype_info(dtype).block == 32) check_exact(dtype, s);
    }
}

// Rows with a single one pick weights: every one of every type, to the bit, in ends of K that are
// no whole registers, blocks or groups, few and many rows at a time, and in rows of a wider matrix.
TEST(exact_products_see_the_weights_themselves) {
    for (DType dtype : kAllTypes)
        for (int64_t k : {1, 3, 37, 96, 255, 257, 288, 300, 384}) {
            const auto block = static_cast<int64_t>(dtype_info(dtype).block);
            if (k % block != 0) continue;
            Layer layer(dtype, 33, 21, k + block);
            layer.projection.weight.cols = layer.x.view.cols = k;
            std::vector<float> w(static_cast<size_t>(21 * k));
            for (int64_t n = 0; n < 21; ++n)
                dequantize_row(dtype, layer.projection.weight.packed_row(n), &w[size_t(n * k)], k);
            for (const KernelTable* table : levels()) {
                int64_t wrong = 0, rows = 0;
                for (int64_t first = 0; first < k; first += rows) {
                    rows = rows == 9 ? 33 : rows % 33 + 1;
                    for (int64_t m = 0; m < 33; ++m)
                        for (int64_t j = 0; j < k; ++j)
                            layer.x.view.row(m)[j] = j == first + m ? 1.0f : 0.0f;
                    Scratch scratch;
                    CHECK(table->linear_exact(layer.x.view, layer.projection, {0, rows}, {0, 21},
                                              scratch));
                    for (int64_t m = 0; m < rows && first + m < k; ++m)
                        for (int64_t n = 0; n < 21; ++n)
                            wrong += layer.out.view.row(m)[n] != w[size_t(n * k + first + m)];
                }
                CHECK(wrong == 0);
                CHECK(layer.out.intact());
            }
        }
}

TEST(fast_matches_double_of_its_codes) {
    for (DType dtype : kAllTypes) {
        if (!is_block_quantized(dtype)) continue;
        for (const Shape& s : shapes())
            for (const KernelTable* table : levels()) {
                Layer layer(dtype, s.m, s.n, s.k);
                run(*table, layer, true);
                const std::vector<float> x = Codes(*table, layer.x.view).decoded();
                // Dot products are exact; only their f32 sum over the groups rounds.
                expect_below(relative_l2(layer, truth(layer, x)), 2e-6, "fast", *table, layer,
                             __LINE__);
            }
    }
}

// Dot products are exact, and the x86 levels add their scaled values in one order: a picture does
// not depend on which of them the processor has.
TEST(levels_from_avx2_upwards_agree_bit_for_bit) {
    const KernelTable* first = nullptr;
    for (const LevelInfo& info : level_list()) {
        if (!supports(detected_features(), info.level)) continue;
        const KernelTable& table = kernel_table(info.level);
        if (std::strcmp(info.name, "avx2") == 0) first = &table;
        if (first == nullptr || first == &table) continue;
        for (DType dtype : kAllTypes)
            for (const Shape& s : kShapes) {
                if (!is_block_quantized(dtype)) continue;
                Layer expected(dtype, s.m, s.n, s.k), found(dtype, s.m, s.n, s.k);
                run(*first, expected, true);
                run(table, found, true);
                CHECK(same(found.out.values(), expected.out.values()));
            }
    }
}

// Uniform x has an rms of 0.58 of its maximum and a code step of 1 / 127 of it, so a rounding error
// of 0.39 % rms; independent errors pass through the sum unchanged in proportion.
TEST(fast_is_close_to_exact) {
    for (DType dtype : kAllTypes) {
        if (!is_block_quantized(dtype)) continue;
        for (const KernelTable* table : levels()) {
            Layer layer(dtype, 20, 40, 1024);
            run(*table, layer, true);
            expect_below(relative_l2(layer, truth(layer, layer.x.values())), 0.006,
                         "fast against x", *table, layer, __LINE__);
        }
    }
}

TEST(extreme_activations) {
    for (DType dtype : kAllTypes) {
        for (const KernelTable* table : levels()) {
            Layer layer(dtype, 8, 20, 512);
            for (int64_t k = 0; k < 512; ++k) {
                layer.x.view.row(1)[k] = 0;
                layer.x.view.row(2)[k] = 1e-42f;
                layer.x.view.row(3)[k] *= k == 200 ? 1e4f : 1;
                layer.x.view.row(4)[k] = k < 128 ? 0 : 1e4f;
                layer.x.view.row(5)[k] *= 1e-30f;
            }
            run(*table, layer, false);
            expect_below(relative_l2(layer, truth(layer, layer.x.values())), 2e-6, "exact", *table,
                         layer, __LINE__);
            if (!is_block_quantized(dtype)) continue;
            run(*table, layer, true);
            const std::vector<float> x = Codes(*table, layer.x.view).decoded();
            expect_below(relative_l2(layer, truth(layer, x)), 2e-6, "fast", *table, layer,
                         __LINE__);
            for (int64_t n = 0; n < 20; ++n)
                CHECK(layer.out.view.row(1)[n] == 0 && layer.out.view.row(2)[n] == 0);
        }
    }
}

// Sums of a group that leave no room in 16 bits.
TEST(largest_sums_of_binary_weights) {
    for (const KernelTable* table : levels()) {
        Layer layer(DType::kQ1_0, 3, 70, 256);
        const DTypeInfo& info = dtype_info(DType::kQ1_0);
        for (size_t b = 0; b < layer.bytes.size(); b += info.bytes) // a column has two blocks
            std::memset(&layer.bytes[b + 2], b / info.bytes % 4 < 2 ? 0xff : 0x00, info.bytes - 2);
        for (int64_t k = 0; k < 256; ++k) {
            layer.x.view.row(0)[k] = 2;
            layer.x.view.row(1)[k] = -2;
            layer.x.view.row(2)[k] = k % 2 == 0 ? 2.0f : -2.0f;
        }
        run(*table, layer, true);
        expect_below(relative_l2(layer, truth(layer, layer.x.values())), 2e-6, "fast", *table,
                     layer, __LINE__);
    }
}

TEST(nan_stays_in_its_row_and_column) {
    for (DType dtype :
         {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0})
        for (const KernelTable* table : levels())
            for (bool fast : {false, true}) {
                Layer layer(dtype, 9, 21, 384);
                run(*table, layer, fast);
                const std::vector<float> before = layer.out.values();
                layer.x.view.row(4)[300] = std::nanf("");
                layer.x.view.row(5)[0] = std::numeric_limits<float>::infinity();
                uint8_t* row = layer.bytes.data() + 18 * row_bytes(dtype, 384);
                Layer::set_half(dtype == DType::kPTQ1_0 ? row + 26 : row, std::nanf(""));
                run(*table, layer, fast);
                for (int64_t m = 0; m < 9; ++m)
                    for (int64_t n = 0; n < 21; ++n) {
                        const float y = layer.out.view.row(m)[n];
                        if (m == 4 || n == 18)
                            CHECK(std::isnan(y));
                        else if (m == 5)
                            CHECK(!std::isfinite(y));
                        else
                            CHECK(y == before[static_cast<size_t>(m * 21 + n)]);
                    }
            }
}

TEST(bias_gate_and_accumulate) {
    for (const KernelTable* table : levels())
        for (bool fast : {false, true})
            for (int mode = 0; mode < 8; ++mode) {
                const bool with_bias = mode & 1, accumulate = mode & 2, with_gate = mode & 4;
                if (with_gate && !accumulate) continue;
                Layer layer(DType::kPQ2_0, 7, 29, 256);
                run(*table, layer, fast);
                const std::vector<float> plain = layer.out.values();
                layer.fill_out(3.0f);
                layer.projection.accumulate = accumulate;
                if (with_bias) layer.projection.bias = layer.bias.view;
                if (with_gate) layer.projection.gate = layer.gate.view;
                run(*table, layer, fast);
                for (int64_t m = 0; m < 7; ++m)
                    for (int64_t n = 0; n < 29; ++n) {
                        float y = plain[static_cast<size_t>(m * 29 + n)];
                        if (with_bias) y += layer.bias.view.f32()[n];
                        if (with_gate) y *= layer.gate.view.f32()[n];
                        if (accumulate) y += 3.0f;
                        CHECK(std::fabs(layer.out.view.row(m)[n] - y) <=
                              1e-6f * (1 + std::fabs(y)));
                    }
            }
}

TEST(pieces_do_not_change_the_result) {
    Random random(7);
    for (DType dtype : kAllTypes)
        for (const KernelTable* table : levels())
            for (bool fast : {false, true}) {
                if (fast && !is_block_quantized(dtype)) continue;
                Layer layer(dtype, 31, 101, 640);
                layer.projection.bias = layer.bias.view;
                layer.projection.gate = layer.gate.view;
                layer.projection.accumulate = true;
                layer.fill_out(0.5f);
                run(*table, layer, fast);
                const std::vector<float> whole = layer.out.values();
                for (int trial = 0; trial < 3; ++trial) {
                    layer.fill_out(0.5f);
                    const Codes codes(*table, layer.x.view);
                    Scratch scratch;
                    Range rows = {0, 0};
                    for (; rows.begin < 31; rows.begin = rows.end) {
                        rows.end = std::min<int64_t>(31, rows.begin + random.integer(1, 9));
                        Range cols = {0, 0};
                        for (; cols.begin < 101; cols.begin = cols.end) {
                            cols.end = std::min<int64_t>(101, cols.begin + random.integer(1, 40));
                            fast ? table->linear_fast(codes.view, layer.projection, rows, cols,
                                                      scratch)
                                 : table->linear_exact(layer.x.view, layer.projection, rows, cols,
                                                       scratch);
                        }
                    }
                    CHECK(same(layer.out.values(), whole));
                    CHECK(layer.out.intact());
                }
            }
}

TEST(scratch_stays_small) {
    for (DType dtype : {DType::kBF16, DType::kQ8_0, DType::kPQ2_0})
        for (const KernelTable* table : levels()) {
            Layer layer(dtype, 3, 300, 12288); // 14 MB when expanded to f32
            Scratch scratch;
            CHECK(table->linear_exact(layer.x.view, layer.projection, {0, 3}, {0, 300}, scratch));
            if (is_block_quantized(dtype)) {
                const Codes codes(*table, layer.x.view);
                CHECK(table->linear_fast(codes.view, layer.projection, {0, 3}, {0, 300}, scratch));
            }
            CHECK(scratch.peak() <= 1 << 20);
        }
}
