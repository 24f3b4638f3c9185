// SPDX-License-Identifier: Apache-2.0
// What the AVX-512 kernels share: exp and silu. Only for files under avx512/; everything here is
// static, so that no AVX-512 code can reach other objects through the linker.
#pragma once

#ifdef __AVX512F__

#include <immintrin.h>

#include "core/tensor.h"

namespace bonsai::cpu {
namespace {

// exp, within 1e-7 relative, as exp8 of the AVX2 level, but for the ends: 0 below -87.33, infinite
// above 88.7. NaN stays NaN.
inline __m512 exp16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 visible = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts (Cody and Waite 1980); n times the first, which has 9 bits, is exact.
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    return _mm512_maskz_scalef_ps(visible, p, n);
}

// x / (1 + exp(-x)); 0 below -87.33, where it is less than 1e-36. Above 87.33 exp(-x) is 0.
inline __m512 silu16(__m512 x) {
    const __mmask16 visible = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);
    const __m512 decay = exp16(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_maskz_div_ps(visible, x, _mm512_add_ps(_mm512_set1_ps(1.0f), decay));
}

} // namespace
} // namespace bonsai::cpu

#endif // __AVX512F__
