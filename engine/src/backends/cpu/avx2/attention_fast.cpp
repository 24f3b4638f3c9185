// SPDX-License-Identifier: Apache-2.0
// attention_fast (see backends/cpu/attention_fast.h) in registers of 8 floats or 16 short integers.
#include "backends/cpu/attention_fast.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/linear.h"
#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

struct Lanes8 {
    using V = __m256;
    using I = __m256i;
    static constexpr int kLanes = 8;
    static constexpr int kRows = 6; // 12 accumulators, two operands, a broadcast pair, a product
    static V zero() { return _mm256_setzero_ps(); }
    static V set(float x) { return _mm256_set1_ps(x); }
    static V load(const float* x) { return _mm256_load_ps(x); }
    static V loadu(const float* x) { return _mm256_loadu_ps(x); }
    static void store(float* to, V x) { _mm256_store_ps(to, x); }
    static V add(V a, V b) { return _mm256_add_ps(a, b); }
    static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static V max(V a, V b) { return _mm256_max_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    static float largest(V a) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static float sum(V a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static V exp(V a) { return exp8(a); }
    // steps / top; 0 where top is tiny or zero.
    static V inverse(V top, V steps) {
        const V large = _mm256_cmp_ps(top, _mm256_set1_ps(1e-34f), _CMP_GT_OQ);
        return _mm256_and_ps(large, _mm256_div_ps(steps, top));
    }

    static I zero_int() { return _mm256_setzero_si256(); }
    static I load_int(const int32_t* x) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
    }
    static void store_int(int32_t* to, I x) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), x);
    }
    template <class T> static I broadcast_pair(const T* x) {
        int32_t pair;
        memcpy(&pair, x, sizeof pair);
        return _mm256_set1_epi32(pair);
    }
    static void multiply_add(I& sum, I a, I b) { avx2::add32(sum, _mm256_madd_epi16(a, b)); }
    static I round(V x) { return _mm256_cvtps_epi32(x); }
    static V to_float(I x) { return _mm256_cvtepi32_ps(x); }
    // Two integers of 16 bits, a below b.
    static I pair(I a, I b) { return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA); }
    static void store16(int16_t* to, I x) {
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(to),
            _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
    }
};

} // namespace

void overlay_avx2_attention_fast(KernelTable& table) {
    table.attention_packed_floats = AttentionFast<Lanes8>::packed_floats;
    table.attention_pack = AttentionFast<Lanes8>::pack;
    table.attention_pack_rows = AttentionFast<Lanes8>::kKeys;
    table.attention_fast = AttentionFast<Lanes8>::attention;
    table.attention_fast_piece_rows = AttentionFast<Lanes8>::kQueries;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_attention_fast(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
