// SPDX-License-Identifier: Apache-2.0
// linear_fast for processors with AVX-VNNI and no AVX-512: as on the level AVX2, with vpdpbusd
// Maths:    unsigned weight codes times signed x codes, four products and the add to a 32-bit sum
//           in one instruction. Q8_0 codes are made unsigned by 128, which is taken off as 128
//           times the block's sum of x codes. Every dot product is exact, so results equal those of
//           the level AVX2.
// Roofline: compute-bound: one vpdpbusd does what vpmaddubsw and vpaddw (for Q8_0: two vpmaddwd and
//           two vpaddd) do there.
#include "backends/cpu/table.h"

#if defined(__AVXVNNI__) || defined(_MSC_VER) || defined(BONSAI_DOT_256)
#include "backends/cpu/avx2/linear_micro.h"

namespace bonsai::cpu::avxvnni {
namespace {

using namespace avx2;

struct Tile {
    static constexpr int kTileRows = 512, kTileCols = 64, kDepth = 256;
    static constexpr int kMicroRows = 6, kMicroPanels = 1;
    static constexpr bool kWide = false;
    static Form form(DType dtype) {
        return {kMicroRows, false, static_cast<uint8_t>(dtype == DType::kQ8_0 ? 0x80 : 0)};
    }
    static const Multiply* kernels(DType dtype);
};

// In place, like add16 of avx2/linear.h and for the same reason.
#if defined(BONSAI_DOT_256) // the instruction's stand-in for tests on processors without AVX-VNNI
BONSAI_ALWAYS_INLINE void add_products(__m256i& sum, __m256i codes, __m256i x) {
    sum = BONSAI_DOT_256(sum, codes, x);
}
#elif defined(__GNUC__)
BONSAI_ALWAYS_INLINE void add_products(__m256i& sum, __m256i codes, __m256i x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
}
#else
BONSAI_ALWAYS_INLINE void add_products(__m256i& sum, __m256i codes, __m256i x) {
    sum = _mm256_dpbusd_avx_epi32(sum, codes, x);
}
#endif

struct Dot {
    static constexpr int kCodeBytes = 1, kStepBytes = kUnit / 4;
    static BONSAI_ALWAYS_INLINE void step(__m256i& sum, __m256i codes, __m256i x) {
        add_products(sum, codes, x);
    }
    template <int R, int Depth>
    static BONSAI_ALWAYS_INLINE void run(const int8_t* rows, const uint8_t* codes,
                                         __m256i (&acc)[R][2]) {
        dot_steps<Dot, Depth / 4, Tile::kDepth>(rows, codes, acc);
    }
};

const Multiply* Tile::kernels(DType dtype) {
    if (dtype == DType::kQ8_0) return kBlocks<Dot, 128, false>;
    if (dtype == DType::kQ4_0) return kBlocks<Dot, 8, false>;
    if (dtype == DType::kQ4_1) return kBlocks<Dot, 0, true>;
    return kLowBit<Dot>;
}

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    return fast_piece<Tile>(x, p, rows, cols, scratch);
}

} // namespace
} // namespace bonsai::cpu::avxvnni

void bonsai::cpu::overlay_avxvnni(KernelTable& table) {
    table.linear_fast = avxvnni::linear_fast;
    table.linear_piece = [](DType) -> PieceSize {
        return {avxvnni::Tile::kTileRows, avxvnni::Tile::kTileCols};
    };
}
#endif
