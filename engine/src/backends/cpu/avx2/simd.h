// SPDX-License-Identifier: Apache-2.0
// What the AVX2 kernels share: loads of short tails, exp, silu, sums. Only for files under avx2/;
// everything here is static, so that no AVX2 code can reach other objects through the linker.
#pragma once

#ifdef __AVX2__

#include <immintrin.h>

#include "core/tensor.h"

namespace bonsai::cpu {
namespace {

// Rows of tensors without the inline members of Tensor, which an unoptimised build would share with
// other objects.
inline float* row_of(const Tensor& t, int64_t r) {
    return static_cast<float*>(t.data) + r * t.stride;
}

// Ones in the first `n` of 8 lanes (n < 8), for maskload and maskstore.
inline __m256i tail_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// exp, within 8e-8 relative: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor series of degree 7
// (remainder 5e-9), times 2^n. Below -87.33 the result is 0 (no denormals), above 88.37 that of
// 88.37. NaN stays NaN: min and max return their second operand when they meet one.
inline __m256 exp8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 lowest = _mm256_set1_ps(-87.33f);
    const __m256 visible = _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ);
    x = _mm256_min_ps(_mm256_set1_ps(88.37f), x);
    x = _mm256_max_ps(lowest, x);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts (Cody and Waite 1980); n times the first, which has 9 bits, is exact.
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), visible);
}

// x / (1 + exp(-x)); 0 below -87.33, where it is less than 1e-36.
inline __m256 silu8(__m256 x) {
    const __m256 visible = _mm256_cmp_ps(x, _mm256_set1_ps(-87.33f), _CMP_NLT_UQ);
    const __m256 decay = exp8(_mm256_sub_ps(_mm256_setzero_ps(), x));
    return _mm256_and_ps(_mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), decay)), visible);
}

inline __m256d low_double(__m256 x) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(x));
}
inline __m256d high_double(__m256 x) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}

inline double sum_lanes(__m256d x) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

struct RowSums {
    double sum;
    double squares;
};

// Sums of (x - centre) and (x - centre)^2 in doubles: reading a row takes longer than converting.
inline RowSums row_sums(const float* x, int64_t n, double centre) {
    const __m256d c = _mm256_set1_pd(centre);
    __m256d sum0 = _mm256_setzero_pd(), sum1 = sum0, squares0 = sum0, squares1 = sum0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256d a = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i)), c);
        const __m256d b = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i + 4)), c);
        sum0 = _mm256_add_pd(sum0, a);
        sum1 = _mm256_add_pd(sum1, b);
        squares0 = _mm256_fmadd_pd(a, a, squares0);
        squares1 = _mm256_fmadd_pd(b, b, squares1);
    }
    RowSums result = {sum_lanes(_mm256_add_pd(sum0, sum1)),
                      sum_lanes(_mm256_add_pd(squares0, squares1))};
    for (; i < n; ++i) {
        const double value = x[i] - centre;
        result.sum += value;
        result.squares += value * value;
    }
    return result;
}

} // namespace
} // namespace bonsai::cpu

#endif // __AVX2__
