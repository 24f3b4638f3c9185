// SPDX-License-Identifier: Apache-2.0
// The AMX and AVX-VNNI kernels on any processor with AVX-512: tile instructions emulated after
// Intel SDM volume 2 (LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD, TDPBF16PS), vpdpbusd in
// its AVX-512 encoding. Linears must equal those of the level AVX2 bit for bit.
#include <cstdint>

#include "core/quantize.h"
#include "ops/emulated_tiles.h"
#include "ops/op_test.h"

namespace emulated {

struct Tiles {
    bool configured = false;
    int bytes[8] = {}, rows[8] = {};
    uint8_t data[8][16][64] = {};
};
static Tiles tiles;
static int64_t products; // so that a test can tell that tiles were used

void load_config(const void* memory) {
    const auto* config = static_cast<const uint8_t*>(memory);
    tiles = Tiles();
    CHECK(config[0] == 1 && config[1] == 0);
    for (int t = 0; t < 8; ++t) {
        uint16_t bytes;
        std::memcpy(&bytes, config + 16 + 2 * t, sizeof bytes);
        tiles.bytes[t] = bytes;
        tiles.rows[t] = config[48 + t];
        CHECK(tiles.bytes[t] <= 64 && tiles.rows[t] <= 16);
    }
    tiles.configured = true;
}
void release() {
    tiles = Tiles();
}
void zero(int t) {
    CHECK(tiles.configured);
    std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
void load(int t, const void* base, size_t stride) {
    zero(t);
    for (int r = 0; r < tiles.rows[t]; ++r)
        std::memcpy(tiles.data[t][r],
                    static_cast<const uint8_t*>(base) + static_cast<size_t>(r) * stride,
                    static_cast<size_t>(tiles.bytes[t]));
}
void store(int t, void* base, size_t stride) {
    CHECK(tiles.configured);
    for (int r = 0; r < tiles.rows[t]; ++r)
        std::memcpy(static_cast<uint8_t*>(base) + static_cast<size_t>(r) * stride, tiles.data[t][r],
                    static_cast<size_t>(tiles.bytes[t]));
}
// c[m][n] += sum over k, j of a[m][4 k + j] * b[k][4 n + j], all signed.
void multiply_signed(int c, int a, int b) {
    CHECK(tiles.configured && tiles.rows[c] == tiles.rows[a] && tiles.bytes[c] == tiles.bytes[b] &&
          tiles.bytes[a] == 4 * tiles.rows[b]);
    ++products;
    for (int m = 0; m < tiles.rows[c]; ++m)
        for (int n = 0; n < tiles.bytes[c] / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, tiles.data[c][m] + 4 * n, sizeof sum);
            for (int k = 0; k < 4 * tiles.rows[b]; ++k)
                sum += static_cast<int8_t>(tiles.data[a][m][k]) *
                       static_cast<int8_t>(tiles.data[b][k / 4][4 * n + k % 4]);
            std::memcpy(tiles.data[c][m] + 4 * n, &sum, sizeof sum);
        }
}
static float bf16(const uint8_t* at) {
    const uint32_t bits = static_cast<uint32_t>(at[0]) << 16 | static_cast<uint32_t>(at[1]) << 24;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
// c[m][n] += sum over k of a[m][2 k] * b[k][2 n], plus the same of the odd ones. A product of two
// bf16 is exact, so that adding it is what a fused multiply-add gives. That the instruction takes
// subnormal numbers for zeros is left out.
void multiply_bf16(int c, int a, int b) {
    CHECK(tiles.configured && tiles.rows[c] == tiles.rows[a] && tiles.bytes[c] == tiles.bytes[b] &&
          tiles.bytes[a] == 4 * tiles.rows[b]);
    ++products;
    for (int m = 0; m < tiles.rows[c]; ++m)
        for (int n = 0; n < tiles.bytes[c]; n += 4) {
            float sums[2] = {}, sum;
            for (int k = 0; k < tiles.rows[b]; ++k)
                for (int odd = 0; odd < 2; ++odd)
                    sums[odd] += bf16(tiles.data[a][m] + 4 * k + 2 * odd) *
                                 bf16(tiles.data[b][k] + n + 2 * odd);
            std::memcpy(&sum, tiles.data[c][m] + n, sizeof sum);
            sum += sums[0] + sums[1];
            std::memcpy(tiles.data[c][m] + n, &sum, sizeof sum);
        }
}

} // namespace emulated

namespace bonsai::cpu {
void overlay_emulated_amx_linear(KernelTable& table);
void overlay_emulated_amx_attention_fast(KernelTable& table);
void overlay_emulated_avxvnni(KernelTable& table);
} // namespace bonsai::cpu

using namespace op_test;

namespace {

// Rows, columns and K of a product, with tails of blocks, panels, strips, tiles and depths; stored,
// or with a bias and a gate added to what is there.
struct Shape {
    int64_t m, n, k;
    bool added;
};
constexpr Shape kShapes[] = {{1, 1, 128, true},      {31, 17, 256, false}, {32, 32, 512, true},
                             {33, 33, 640, false},   {77, 130, 384, true}, {64, 97, 1152, false},
                             {1550, 20, 128, false}, {5, 400, 1024, true}, {270, 200, 3328, false}};

std::vector<uint8_t> random_weight(DType dtype, const Shape& s, Random& random) {
    const DTypeInfo& info = dtype_info(dtype);
    std::vector<uint8_t> bytes(row_bytes(dtype, s.k) * static_cast<size_t>(s.n));
    for (uint8_t& b : bytes)
        b = static_cast<uint8_t>(random.bits());
    // Scales: halves of magnitude 2^-8 to 2^-6, of both signs.
    const size_t scale_at = dtype == DType::kPTQ1_0 ? 26 : 0;
    for (size_t b = 0; b < bytes.size(); b += info.bytes) {
        bytes[b + scale_at + 1] = static_cast<uint8_t>((random.bits() & 0x83) | 0x20);
        if (dtype == DType::kQ4_1) bytes[b + 3] = bytes[b + 1];
    }
    return bytes;
}

void check_equal(const KernelTable& table, DType dtype, const Shape& s) {
    const KernelTable& below = cpu::kernel_table(cpu::Level::kAvx2);
    Random random(11);
    Matrix x(s.m, s.k, 3, random), expected(s.m, s.n, 5), found(s.m, s.n, 5);
    std::vector<uint8_t> weight = random_weight(dtype, s, random);
    std::vector<uint8_t> memory(cpu::quantized_rows_bytes(s.m, s.k) + 64);
    void* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    const cpu::QuantizedRows codes = cpu::quantized_rows_at(aligned, s.m, s.k);
    below.quantize_rows(x.tensor(), codes, {0, s.m});
    Projection p;
    p.weight = Tensor{dtype, s.n, s.k, s.k, weight.data()};
    Matrix bias(1, s.n, 0, random), gate(1, s.n, 0, random);
    if (s.added) {
        p.bias = bias.tensor(), p.gate = gate.tensor(), p.accumulate = true;
        for (Matrix* out : {&expected, &found})
            out->fill([](int64_t r, int64_t c) { return static_cast<float>(r - c) / 64; });
    }
    Scratch scratch;
    p.out = expected.tensor();
    CHECK(below.linear_fast(codes, p, {0, s.m}, {0, s.n}, scratch));
    p.out = found.tensor();
    CHECK(table.linear_fast(codes, p, {0, s.m}, {0, s.n}, scratch));
    CHECK(found.intact() && found.same_bytes(expected));
}

// Attention of operands that lie in one fused buffer, as the transformer's do.
struct Attention {
    int64_t queries, keys;
    int heads, kv_heads, head_dim;
    float amplitude; // of q and k: the logits have about amplitude^2 * sqrt(head_dim) / 3
};

struct Operands {
    explicit Operands(const Attention& a)
        : shape(a), scale(1.0f / std::sqrt(static_cast<float>(a.head_dim))) {
        Random random(17);
        q = Matrix(a.queries, int64_t{a.heads} * a.head_dim, 5, random, a.amplitude);
        k = Matrix(a.keys, int64_t{a.kv_heads} * a.head_dim, 24, random, a.amplitude);
        v = Matrix(a.keys, int64_t{a.kv_heads} * a.head_dim, 7, random);
    }
    AttentionArgs args(Matrix& out) {
        AttentionArgs args;
        args.q = q.tensor(), args.k = k.tensor(), args.v = v.tensor(), args.out = out.tensor();
        args.heads = shape.heads, args.kv_heads = shape.kv_heads, args.head_dim = shape.head_dim;
        args.scale = scale;
        return args;
    }
    Matrix make_out() const {
        return Matrix(shape.queries, int64_t{shape.heads} * shape.head_dim, 9);
    }
    Attention shape;
    float scale;
    Matrix q, k, v;
};

void run_fast(const KernelTable& table, const AttentionArgs& args, Range rows) {
    Scratch memory, scratch;
    const size_t count = table.attention_packed_floats(args);
    auto* packed = static_cast<float*>(memory.get((count + 16) * sizeof(float)));
    std::fill(packed, packed + count + 16, -7.0f);
    for (int64_t i = (args.k.rows - 1) / table.attention_pack_rows; i >= 0; --i)
        table.attention_pack(args, {i, i + 1}, packed);
    CHECK(std::all_of(packed + count, packed + count + 16, [](float x) { return x == -7.0f; }));
    for (int head = 0; head < args.heads; ++head)
        CHECK(table.attention_fast(args, packed, head, rows, scratch));
}

Expected formula(Operands& operands) {
    Matrix out = operands.make_out();
    Scratch scratch;
    const AttentionArgs args = operands.args(out);
    const KernelTable& generic = cpu::kernel_table(cpu::Level::kGeneric);
    for (int head = 0; head < args.heads; ++head)
        CHECK(generic.attention(args, head, {0, args.q.rows}, scratch));
    Expected expected;
    for (int64_t r = 0; r < out.rows(); ++r)
        for (int64_t c = 0; c < out.cols(); ++c)
            expected.push_back(out.at(r, c));
    return expected;
}

// bf16 factors: 8 bits of q, k and v, and of the weights.
void check_attention(const KernelTable& table, const Attention& shape) {
    Operands operands(shape);
    const Expected expected = formula(operands);
    Matrix out = operands.make_out();
    const int64_t before = emulated::products;
    CHECK(same_in_pieces(shape.queries, out,
                         [&](Range rows) { run_fast(table, operands.args(out), rows); }));
    CHECK(emulated::products > before);
    const double error = rel_l2(out, expected);
    std::printf("attention %lld x %lld x %d, amplitude %g: %.1e\n",
                static_cast<long long>(shape.queries), static_cast<long long>(shape.keys),
                shape.head_dim, static_cast<double>(shape.amplitude), error);
    CHECK(error < 1e-2 && error > 1e-5 && out.intact());
}

// False, with a line that says so, where the kernels' other instructions are missing.
bool can_emulate() {
    if (cpu::supports(cpu::detected_features(), cpu::Level::kAvx512)) return true;
    std::printf("skipped: this processor lacks the level avx512\n");
    return false;
}

} // namespace

TEST(tiles_give_the_results_of_avx2) {
    if (!can_emulate()) return;
    KernelTable amx = cpu::kernel_table(cpu::Level::kAvx512);
    cpu::overlay_emulated_amx_linear(amx);
    for (const DType dtype :
         {DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0})
        for (const Shape& s : kShapes) {
            const int64_t before = emulated::products;
            check_equal(amx, dtype, s);
            CHECK(emulated::products > before);
        }
}

TEST(avxvnni_gives_the_results_of_avx2) {
    if (!can_emulate()) return;
    KernelTable avxvnni = cpu::kernel_table(cpu::Level::kAvx2);
    cpu::overlay_emulated_avxvnni(avxvnni);
    for (const DType dtype :
         {DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0})
        for (const Shape& s : kShapes)
            check_equal(avxvnni, dtype, s);
}

TEST(attention_on_tiles) {
    if (!can_emulate()) return;
    KernelTable amx = cpu::kernel_table(cpu::Level::kAvx512);
    cpu::overlay_emulated_amx_attention_fast(amx);
    // Tails of tiles, panels, blocks, pieces and groups; few and many logits that differ.
    for (const Attention& shape :
         {Attention{1, 1, 1, 1, 8, 1}, Attention{5, 7, 2, 1, 24, 1}, Attention{33, 31, 1, 1, 40, 2},
          Attention{40, 129, 2, 2, 128, 1}, Attention{17, 1100, 1, 1, 64, 2},
          Attention{200, 160, 1, 1, 32, 3}, Attention{20, 100, 1, 1, 520, 1},
          Attention{20, 300, 1, 1, 64, 5}})
        check_attention(amx, shape);
}

// Maxima that rise in every block, that fall, and one key that outweighs all others without adding
// anything.
TEST(attention_on_tiles_moves_maxima) {
    if (!can_emulate()) return;
    KernelTable amx = cpu::kernel_table(cpu::Level::kAvx512);
    cpu::overlay_emulated_amx_attention_fast(amx);
    // Whole logits to the base 2, exact in bf16.
    const auto try_keys = [&](const std::function<int64_t(int64_t)>& logit, int64_t zeros) {
        Operands operands({40, 600, 1, 1, 16, 1});
        operands.q.fill([](int64_t, int64_t d) { return d == 0 ? 1.0f : 0.0f; });
        operands.k.fill(
            [&](int64_t j, int64_t d) { return d == 0 ? static_cast<float>(logit(j)) : 0.0f; });
        for (int64_t j = 0; j < zeros; ++j)
            for (int64_t d = 0; d < 16; ++d)
                operands.v.at(j, d) = 0;
        operands.scale = 1 / 1.44269504f;
        Matrix out = operands.make_out();
        run_fast(amx, operands.args(out), {0, 40});
        CHECK(rel_l2(out, formula(operands)) < 5e-3);
    };
    try_keys([](int64_t j) { return j / 3; }, 0);
    try_keys([](int64_t j) { return -j / 3; }, 0);
    try_keys([](int64_t j) { return j == 5 ? 110 : 0; }, 96);
    try_keys([](int64_t j) { return j == 500 ? 110 : 0; }, 0);
}

TEST(attention_on_tiles_shows_nan) {
    if (!can_emulate()) return;
    KernelTable amx = cpu::kernel_table(cpu::Level::kAvx512);
    cpu::overlay_emulated_amx_attention_fast(amx);
    for (const int where : {0, 1, 2})
        for (const float bad : {std::nanf(""), INFINITY, 3e38f}) {
            Operands operands({40, 140, 1, 1, 24, 1});
            if (where == 0) operands.q.at(17, 3) = bad;
            if (where == 1)
                operands.k.at(70, 3) = bad, operands.q.fill([](int64_t, int64_t) { return 2.0f; });
            if (where == 2) operands.v.at(70, 3) = std::isfinite(bad) ? -INFINITY : bad;
            Matrix out = operands.make_out();
            run_fast(amx, operands.args(out), {0, 40});
            for (int64_t i = 0; i < 40; ++i)
                for (int64_t d : {3, 20}) {
                    const bool hit = where == 1 || (where == 0 ? i == 17 : d == 3);
                    CHECK(std::isfinite(out.at(i, d)) == !hit);
                }
        }
}
