// SPDX-License-Identifier: Apache-2.0
// quantize_rows: f32 activations to int8 with a scale for each 128 columns of a token; rules and
// arithmetic of generic/quantize.cpp.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cmath>

#include "backends/cpu/avx2/linear.h"

namespace bonsai::cpu::avx2 {
namespace {

// Magnitudes compare as integers: a NaN or an infinity is at least 0x7f800000.
__m256i magnitude(const float* x) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                            _mm256_set1_epi32(0x7fffffff));
}

uint32_t largest_magnitude(const float* x) {
    __m256i top = magnitude(x);
    for (int j = 8; j < kGroup; j += 8)
        top = _mm256_max_epu32(top, magnitude(x + j));
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

__m256i rounded(const float* x, __m256 inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
}

// 32 codes, stored; returns their sum.
int32_t quantize_block(const float* x, __m256 inverse, int8_t* q) {
    const __m256i low = _mm256_packs_epi32(rounded(x, inverse), rounded(x + 8, inverse));
    const __m256i high = _mm256_packs_epi32(rounded(x + 16, inverse), rounded(x + 24, inverse));
    // The packs work within 128-bit halves; the permutation puts the groups of four back in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), codes);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

void quantize_group(const float* x, const QuantizedRows& out, int64_t m, int64_t g) {
    int8_t* q = out.q + m * out.stride + g * kGroup;
    const uint32_t top = largest_magnitude(x);
    const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(top))));
    const bool finite = top < 0x7f800000u;
    const bool usable = finite && largest >= kLeastGroupMagnitude;
    out.scale[g * out.rows + m] = !finite ? NAN : usable ? largest / 127.0f : 0.0f;
    const __m256 inverse = _mm256_set1_ps(usable ? 127.0f / largest : 0.0f);
    int32_t sum = 0;
    for (int b = 0; b < kGroup / kBlock; ++b) {
        int32_t block_sum = 0;
        if (usable)
            block_sum = quantize_block(x + b * kBlock, inverse, q + b * kBlock);
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + b * kBlock), _mm256_setzero_si256());
        if (out.block_sum != nullptr)
            out.block_sum[(g * (kGroup / kBlock) + b) * out.rows + m] = block_sum;
        sum += block_sum;
    }
    if (out.sum != nullptr) out.sum[g * out.rows + m] = sum;
}

} // namespace

void quantize_rows(const Tensor& x, const QuantizedRows& out, Range rows) {
    const int64_t groups = out.cols / kGroup;
    for (int64_t m = rows.begin; m < rows.end; ++m)
        for (int64_t g = 0; g < groups; ++g)
            quantize_group(static_cast<const float*>(x.data) + m * x.stride + g * kGroup, out, m,
                           g);
}

} // namespace bonsai::cpu::avx2
#endif
