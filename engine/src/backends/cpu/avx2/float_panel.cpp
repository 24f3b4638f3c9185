// SPDX-License-Identifier: Apache-2.0
// Panels of floats (see backends/cpu/float_panel.h) in registers of 8 words.
#if defined(__AVX2__)
#include "backends/cpu/float_panel.h"

#include <immintrin.h>

#include "backends/cpu/avx2/unpack.h"

namespace bonsai::cpu::avx2 {
namespace {

struct Lanes8 {
    using V = __m256;
    static constexpr int kLanes = 8;
    static V set(float x) { return _mm256_set1_ps(x); }
    static void store(float* to, V x) { _mm256_store_ps(to, x); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static V load_words(const uint8_t* p) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    }
    // To the second-level cache: the first one is full of panels.
    static void prefetch(const uint8_t* p) {
        _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
    }
    static V load_halves(const uint16_t* x) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }

    static V half(V words, int j) {
        // Low halves of all words to the low 128 bits, high ones to the high 128 bits.
        const __m256i apart =
            _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9,
                             12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        const __m256i both =
            _mm256_permute4x64_epi64(_mm256_shuffle_epi8(_mm256_castps_si256(words), apart), 0xD8);
        return _mm256_cvtph_ps(j == 0 ? _mm256_castsi256_si128(both)
                                      : _mm256_extracti128_si256(both, 1));
    }
    static V brain(V words, int j) {
        const __m256i v = _mm256_castps_si256(words);
        const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
        return _mm256_castsi256_ps(j == 0 ? _mm256_slli_epi32(v, 16) : _mm256_and_si256(v, high));
    }
    static V code(V words, int j) {
        const __m256i above = _mm256_slli_epi32(_mm256_castps_si256(words), 24 - 8 * j);
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(above, 24));
    }

    // 8 x 8: pairs of 32, pairs of 64, halves of 128 bits.
    static void transpose(V (&w)[8]) {
        V s[8], t[8];
        BONSAI_UNROLL(4)
        for (int i = 0; i < 8; i += 2) {
            s[i] = _mm256_unpacklo_ps(w[i], w[i + 1]);
            s[i + 1] = _mm256_unpackhi_ps(w[i], w[i + 1]);
        }
        BONSAI_UNROLL(2)
        for (int i = 0; i < 8; i += 4) {
            t[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
            t[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
            t[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
            t[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
        }
        BONSAI_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
            w[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
            w[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
        }
    }

    static void unpack(DType dtype, const uint8_t* packed, uint8_t* codes) {
        GroupScales scales;
        unpack_group(dtype, packed, codes, &scales);
        const uint8_t zero = dtype == DType::kQ4_0 ? 8 : dtype == DType::kQ4_1 ? 0 : 1;
        for (int i = 0; i < kGroup; ++i)
            codes[i] = static_cast<uint8_t>(codes[i] - zero);
    }
};
static_assert(FloatPanel<Lanes8>::kCols == kPanel, "panels of the product");

} // namespace

void unpack_panel(const Tensor& w, int64_t row, int64_t k, int64_t depth, float* panel) {
    FloatPanel<Lanes8>::unpack(w, row, k, depth, panel);
}

} // namespace bonsai::cpu::avx2
#endif
