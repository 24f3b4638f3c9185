// SPDX-License-Identifier: Apache-2.0
// The AMX and AVX-VNNI kernels on any processor with AVX-512: tile instructions emulated after
// Intel SDM volume 2 (LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD), vpdpbusd in its AVX-512
// encoding. Results must equal those of the level AVX2 bit for bit.
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

} // namespace emulated

namespace bonsai::cpu {
void overlay_emulated_amx(KernelTable& table);
void overlay_emulated_avxvnni(KernelTable& table);
} // namespace bonsai::cpu

using namespace op_test;

namespace {

// Rows, columns and K of a product, with tails of blocks, panels, tiles and depths.
struct Shape {
    int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 1, 128},    {31, 17, 256},  {32, 32, 512},   {33, 33, 640},
                             {77, 130, 384}, {64, 97, 1152}, {1550, 20, 128}, {5, 300, 1024}};

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
    Scratch scratch;
    p.out = expected.tensor();
    CHECK(below.linear_fast(codes, p, {0, s.m}, {0, s.n}, scratch));
    p.out = found.tensor();
    CHECK(table.linear_fast(codes, p, {0, s.m}, {0, s.n}, scratch));
    CHECK(found.intact() && found.same_bytes(expected));
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
    cpu::overlay_emulated_amx(amx);
    for (const DType dtype : {DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0, DType::kQ4_0})
        for (const Shape& s : kShapes) {
            const int64_t before = emulated::products;
            check_equal(amx, dtype, s);
            CHECK((emulated::products > before) == (dtype_info(dtype).block == kGroup));
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
