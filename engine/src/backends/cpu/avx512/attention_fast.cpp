// SPDX-License-Identifier: Apache-2.0
// attention_fast (see backends/cpu/attention_fast.h) in registers of 16 floats, with VNNI.
#include "backends/cpu/attention_fast.h"

#ifdef __AVX512VNNI__

#include "backends/cpu/avx512/simd.h"

namespace bonsai::cpu {
namespace {

struct Lanes16 {
    using V = __m512;
    using I = __m512i;
    static constexpr int kLanes = 16;
    static constexpr int kRows = 12; // 24 accumulators, two operands and a broadcast pair
    static V zero() { return _mm512_setzero_ps(); }
    static V set(float x) { return _mm512_set1_ps(x); }
    static V load(const float* x) { return _mm512_load_ps(x); }
    static V loadu(const float* x) { return _mm512_loadu_ps(x); }
    static void store(float* to, V x) { _mm512_store_ps(to, x); }
    static V add(V a, V b) { return _mm512_add_ps(a, b); }
    static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static V max(V a, V b) { return _mm512_max_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static V abs(V a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
    static float largest(V a) { return _mm512_reduce_max_ps(a); }
    static float sum(V a) { return _mm512_reduce_add_ps(a); }
    static V exp(V a) { return exp16(a); }
    // steps / top; 0 where top is tiny or zero.
    static V inverse(V top, V steps) {
        const __mmask16 large = _mm512_cmp_ps_mask(top, _mm512_set1_ps(1e-34f), _CMP_GT_OQ);
        return _mm512_maskz_div_ps(large, steps, top);
    }

    static I zero_int() { return _mm512_setzero_si512(); }
    static I load_int(const int32_t* x) { return _mm512_load_si512(x); }
    static void store_int(int32_t* to, I x) { _mm512_store_si512(to, x); }
    template <class T> static I broadcast_pair(const T* x) {
        int32_t pair;
        memcpy(&pair, x, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
#if defined(__GNUC__)
    // In place: intrinsics alone make gcc 12 copy accumulators of an unrolled loop.
    static void multiply_add(I& sum, I a, I b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    }
#else
    static void multiply_add(I& sum, I a, I b) { sum = _mm512_dpwssd_epi32(sum, a, b); }
#endif
    static I round(V x) { return _mm512_cvtps_epi32(x); }
    static V to_float(I x) { return _mm512_cvtepi32_ps(x); }
    // Two integers of 16 bits, a below b.
    static I pair(I a, I b) {
        return _mm512_mask_blend_epi16(0xAAAAAAAAu, a, _mm512_slli_epi32(b, 16));
    }
    static void store16(int16_t* to, I x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(x));
    }
};

} // namespace

void overlay_avx512_attention_fast(KernelTable& table) {
    table.attention_packed_floats = AttentionFast<Lanes16>::packed_floats;
    table.attention_pack = AttentionFast<Lanes16>::pack;
    table.attention_pack_rows = AttentionFast<Lanes16>::kKeys;
    table.attention_fast = AttentionFast<Lanes16>::attention;
    table.attention_fast_piece_rows = AttentionFast<Lanes16>::kQueries;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx512_attention_fast(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX512VNNI__
