// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/op_test.h"

using namespace op_test;

struct Case {
    int64_t queries, keys;
    int heads, kv_heads, head_dim;
    bool causal;
};

// Operands as column slices of wider buffers.
struct Operands {
    Case shape;
    Matrix q, k, v;
    float scale;

    Operands(const Case& c, uint64_t seed, float amplitude = 1.0f)
        : shape(c), scale(1.0f / std::sqrt(static_cast<float>(c.head_dim))) {
        Random random(seed);
        q = Matrix(c.queries, int64_t{c.heads} * c.head_dim, 24, random, amplitude);
        k = Matrix(c.keys, int64_t{c.kv_heads} * c.head_dim, 40, random, amplitude);
        v = Matrix(c.keys, int64_t{c.kv_heads} * c.head_dim, 8, random, amplitude);
    }
    AttentionArgs args(Matrix& out) {
        AttentionArgs a;
        a.q = q.tensor(), a.k = k.tensor(), a.v = v.tensor(), a.out = out.tensor();
        a.heads = shape.heads, a.kv_heads = shape.kv_heads, a.head_dim = shape.head_dim;
        a.scale = scale, a.causal = shape.causal;
        return a;
    }
    Matrix make_out() const {
        return Matrix(shape.queries, int64_t{shape.heads} * shape.head_dim, 16);
    }

    Expected formula() const {
        Expected out(static_cast<size_t>(q.rows() * q.cols()));
        const int shared = shape.heads / shape.kv_heads, dim = shape.head_dim;
        std::vector<double> weight(static_cast<size_t>(shape.keys));
        for (int64_t i = 0; i < shape.queries; ++i) {
            for (int h = 0; h < shape.heads; ++h) {
                const int64_t column = int64_t{h / shared} * dim;
                double top = -INFINITY, total = 0;
                const int64_t seen = shape.causal ? std::min(shape.keys, i + 1) : shape.keys;
                for (int64_t j = 0; j < seen; ++j) {
                    double dot = 0;
                    for (int d = 0; d < dim; ++d)
                        dot += static_cast<double>(q.at(i, int64_t{h} * dim + d)) *
                               k.at(j, column + d);
                    weight[static_cast<size_t>(j)] = dot * scale;
                    top = std::fmax(top, dot * scale);
                }
                for (int64_t j = 0; j < seen; ++j)
                    total += std::exp(weight[static_cast<size_t>(j)] - top);
                for (int64_t j = 0; j < seen; ++j) {
                    const double p = std::exp(weight[static_cast<size_t>(j)] - top) / total;
                    for (int d = 0; d < dim; ++d)
                        out[static_cast<size_t>(i * q.cols() + int64_t{h} * dim + d)] +=
                            p * v.at(j, column + d);
                }
            }
        }
        return out;
    }
};

static void run(const KernelTable& table, const AttentionArgs& args, Range rows, Scratch& scratch) {
    for (int head = 0; head < args.heads; ++head)
        CHECK(table.attention(args, head, rows, scratch));
}

// All keys packed, block by block from the last on, into memory of exactly the size announced.
static const float* pack(const KernelTable& table, const AttentionArgs& args, Scratch& memory) {
    const size_t count = table.attention_packed_floats(args);
    auto* packed = static_cast<float*>(memory.get((count + 16) * sizeof(float)));
    std::fill(packed, packed + count + 16, -7.0f);
    for (int64_t i = (args.k.rows - 1) / table.attention_pack_rows; i >= 0; --i)
        table.attention_pack(args, {i, i + 1}, packed);
    CHECK(std::all_of(packed + count, packed + count + 16, [](float x) { return x == -7.0f; }));
    return packed;
}

static void run_fast(const KernelTable& table, const AttentionArgs& args, Range rows,
                     Scratch& scratch) {
    Scratch memory;
    const float* packed = pack(table, args, memory);
    for (int head = 0; head < args.heads; ++head)
        CHECK(table.attention_fast(args, packed, head, rows, scratch));
}

// 16-bit factors: rounding leaves some 2e-4 of a result; bf16 (8 bits) on AMX some 3e-3.
static void compare_fast(Operands& operands, const Expected& expected, const KernelTable& table,
                         int bits) {
    if (!table.attention_fast || operands.shape.causal) return;
    Matrix out = operands.make_out();
    Scratch scratch;
    CHECK(same_in_pieces(operands.shape.queries, out,
                         [&](Range rows) { run_fast(table, operands.args(out), rows, scratch); }));
    CHECK(rel_l2(out, expected) < (bits == 8 ? 1e-2 : 1e-3));
    CHECK(out.intact());
}

// f32 logits of size L carry an error of about L * 1e-7, which is the relative error of a weight.
static void compare(Operands operands, double tolerance = 1e-6,
                    std::initializer_list<int> fast_bits = {8, 16}) {
    const Expected expected = operands.formula();
    for (const KernelTable* table : levels()) {
        Matrix out = operands.make_out();
        Scratch scratch;
        CHECK_OK(check(operands.args(out)));
        CHECK(same_in_pieces(operands.shape.queries, out,
                             [&](Range rows) { run(*table, operands.args(out), rows, scratch); }));
        CHECK(rel_l2(out, expected) < tolerance);
        CHECK(out.intact());
        const int bits = std::strcmp(table->level, "amx") == 0 ? 8 : 16;
        if (std::count(fast_bits.begin(), fast_bits.end(), bits) > 0)
            compare_fast(operands, expected, *table, bits);
    }
}

TEST(shapes) {
    uint64_t seed = 0;
    for (bool causal : {false, true}) {
        for (const Case& c : {Case{1, 1, 1, 1, 8, causal}, Case{5, 7, 2, 1, 24, causal},
                              Case{6, 16, 1, 1, 16, causal}, Case{95, 95, 2, 2, 64, causal},
                              Case{96, 97, 1, 1, 64, causal}, Case{97, 193, 2, 1, 40, causal},
                              Case{130, 200, 4, 2, 128, causal}, Case{20, 100, 1, 1, 520, causal},
                              Case{17, 50, 8, 2, 128, causal}, Case{200, 20, 1, 1, 32, causal}})
            compare(Operands(c, ++seed));
    }
}

TEST(model_shapes) {
    compare(Operands({300, 300, 2, 1, 128, true}, 21));
    compare(Operands({288, 288, 2, 2, 128, false}, 22));
    compare(Operands({100, 256, 1, 1, 512, false}, 23));
    compare(Operands({7, 16384, 1, 1, 64, false}, 24));
}

// Integer operands: dot products are exact, logits reach +-1e4 and one key takes all the weight.
TEST(large_logits) {
    for (bool causal : {false, true}) {
        Operands operands({40, 230, 2, 1, 64, causal}, 3);
        Random random(4);
        operands.q.fill(
            [&](int64_t, int64_t) { return static_cast<float>(random.integer(-32, 32)); });
        operands.k.fill(
            [&](int64_t, int64_t) { return static_cast<float>(random.integer(-32, 32)); });
        operands.scale = 1.0f;
        compare(operands, 1e-6, {}); // a rounded logit of 1e4 is off by more than 1
    }
}

// The largest logits come last (every block moves the maximum) or first (later blocks vanish).
TEST(rising_and_falling_logits) {
    for (float slope : {0.25f, -0.25f}) {
        Operands operands({10, 600, 1, 1, 8, false}, 5);
        operands.q.fill([](int64_t, int64_t d) { return d == 0 ? 1.0f : 0.0f; });
        operands.k.fill(
            [&](int64_t j, int64_t d) { return d == 0 ? slope * static_cast<float>(j) : 0.0f; });
        operands.scale = 1.0f;
        compare(operands, 1e-6, {16}); // 8 bits of a logit of 150 leave it off by 0.3
    }
}

// One key outweighs all others, but its values and those of its block are zero: what remains comes
// from other blocks, which keep their precision as each has a maximum of its own.
TEST(a_sink) {
    Operands operands({30, 1000, 1, 1, 32, false}, 12);
    operands.q.fill([](int64_t, int64_t d) { return d == 0 ? 1.0f : 0.01f; });
    for (int64_t d = 0; d < 32; ++d) {
        operands.k.at(5, d) = d == 0 ? 80.0f : 0.0f;
        for (int64_t j = 0; j < 96; ++j)
            operands.v.at(j, d) = 0.0f;
    }
    compare(operands, 1e-5, {16}); // likewise; test_emulated.cpp has logits that 8 bits hold
}

TEST(tiny_and_constant) {
    compare(Operands({20, 120, 1, 1, 64, false}, 6, 1e-20f));
    compare(Operands({20, 120, 1, 1, 64, true}, 7, 1e-40f), 1e-4); // denormals have few digits
    Operands constant({20, 250, 1, 1, 64, false}, 8);
    constant.v.fill([](int64_t, int64_t) { return 3.0f; });
    compare(constant);
}

// Keys and values after a query change nothing, byte for byte.
TEST(causal_ignores_the_future) {
    Operands first({150, 150, 2, 1, 32, true}, 9), second = first;
    for (int64_t j = 100; j < 150; ++j) {
        for (int64_t c = 0; c < first.k.cols(); ++c) {
            second.k.at(j, c) = 1e3f * static_cast<float>(j - c);
            second.v.at(j, c) = -1e6f;
        }
    }
    for (const KernelTable* table : levels()) {
        Matrix a = first.make_out(), b = first.make_out();
        Scratch scratch;
        run(*table, first.args(a), {0, 150}, scratch);
        run(*table, second.args(b), {0, 150}, scratch);
        bool same = true;
        for (int64_t i = 0; i < 100; ++i)
            for (int64_t c = 0; c < a.cols(); ++c)
                same = same && a.at(i, c) == b.at(i, c);
        CHECK(same);
        CHECK(a.at(149, 0) != b.at(149, 0));
    }
}

// A NaN must not be taken for a masked key and vanish.
TEST(nan_shows) {
    for (const bool value : {false, true}) {
        Operands operands({3, 140, 1, 1, 24, false}, 10);
        (value ? operands.v : operands.k).at(70, 3) = NAN;
        for (const KernelTable* table : levels()) {
            Matrix out = operands.make_out();
            Scratch scratch;
            if (!table->attention_fast) continue;
            run_fast(*table, operands.args(out), {0, 3}, scratch);
            for (int64_t i = 0; i < 3; ++i)
                CHECK(std::isnan(out.at(i, 3)) && std::isnan(out.at(i, 20)) == !value);
        }
    }
    Operands operands({3, 40, 1, 1, 16, false}, 10);
    operands.q.at(1, 3) = NAN;
    for (const KernelTable* table : levels()) {
        Matrix out = operands.make_out();
        Scratch scratch;
        run(*table, operands.args(out), {0, 3}, scratch);
        CHECK(!std::isnan(out.at(0, 0)) && std::isnan(out.at(1, 0)) && !std::isnan(out.at(2, 0)));
        if (!table->attention_fast) continue;
        run_fast(*table, operands.args(out), {0, 3}, scratch);
        CHECK(!std::isnan(out.at(0, 0)) && std::isnan(out.at(1, 0)) && !std::isnan(out.at(2, 0)));
    }
}

// Scratch of the fast levels does not grow with the number of keys.
TEST(scratch_is_bounded) {
    for (const KernelTable* table : levels()) {
        if (table == levels().front()) continue;
        size_t peak[2];
        for (int i = 0; i < 2; ++i) {
            Operands operands({96, i == 0 ? 96 : 4096, 1, 1, 128, false}, 11);
            Matrix out = operands.make_out();
            Scratch scratch;
            run(*table, operands.args(out), {0, 96}, scratch);
            peak[i] = scratch.peak();
        }
        CHECK(peak[0] == peak[1] && peak[0] < (1u << 20));
    }
}
