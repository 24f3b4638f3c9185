// SPDX-License-Identifier: Apache-2.0
// torch fills blocks of 16 values by Box-Muller from mt19937 uniforms: the first 8 give radii, the
// last 8 angles. Logarithm, sine and cosine are the single-precision Cephes polynomials (Moshier)
// with fused multiply-adds, so every std::fma here is part of the result and none may be added or
// lost: this file is compiled with floating-point contraction off.
#include "core/rng.h"

#include <cassert>
#include <cmath>
#include <cstring>
#include <random>

// A fused multiply-add is a call where the compiler may not assume the instruction, so x86-64 has
// the same arithmetic a second time, by vectors; each lane gives the same bits by definition.
#if defined(__x86_64__) && defined(__GNUC__)
#define BONSAI_RNG_VECTORS 1
#include <immintrin.h>
#endif

namespace bonsai {

namespace {

float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

constexpr float kLogCoefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f,
                                      1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                      -2.4999993993e-1f, 3.3333331174e-1f};

// Natural logarithm of a positive float.
float cephes_log(float x) {
    if (x < 1.17549435e-38f) x = 1.17549435e-38f;
    const uint32_t bits = float_to_bits(x);
    float exponent = static_cast<float>(static_cast<int>(bits >> 23) - 127) + 1.0f;
    float m = bits_to_float((bits & 0x807fffffu) | 0x3f000000u); // mantissa in [0.5, 1)
    if (m < 0.707106781186547524f) {
        m = (m - 1.0f) + m;
        exponent -= 1.0f;
    } else {
        m = m - 1.0f;
    }
    const float z = m * m;
    float y = 7.0376836292e-2f;
    for (const float c : kLogCoefficients)
        y = std::fma(y, m, c);
    y = y * m;
    y = std::fma(y, z, exponent * -2.12194440e-4f);
    y = std::fma(-z, 0.5f, y);
    return std::fma(exponent, 0.693359375f, m + y);
}

// Sine and cosine of an angle in [0, 2 pi).
void cephes_sincos(float x, float* sin_out, float* cos_out) {
    const int octant = (static_cast<int>(x * 1.27323954473516f) + 1) & ~1;
    const float j = static_cast<float>(octant);
    x = std::fma(j, -0.78515625f, x); // pi / 4 in three parts
    x = std::fma(j, -2.4187564849853515625e-4f, x);
    x = std::fma(j, -3.77489497744594108e-8f, x);
    const float z = x * x;
    float c = 2.443315711809948e-5f;
    c = std::fma(c, z, -1.388731625493765e-3f);
    c = std::fma(c, z, 4.166664568298827e-2f);
    c = c * z;
    c = std::fma(c, z, -(z * 0.5f)) + 1.0f;
    float s = -1.9515295891e-4f;
    s = std::fma(s, z, 8.3321608736e-3f);
    s = std::fma(s, z, -1.6666654611e-1f) * z;
    s = std::fma(s, x, x);
    const bool swap = octant & 2;
    *sin_out = swap ? c : s;
    *cos_out = swap ? s : c;
    if (octant & 4) *sin_out = -*sin_out;
    if (((octant - 2) & 4) == 0) *cos_out = -*cos_out;
}

class Uniforms {
  public:
    explicit Uniforms(uint64_t seed) : engine_(static_cast<uint32_t>(seed)) {}
    // 24 random bits as a float in [0, 1).
    float next() { return static_cast<float>(engine_() & 0xffffffu) * 5.9604644775390625e-8f; }

  private:
    std::mt19937 engine_;
};

void box_muller_block(float* block) {
    for (int j = 0; j < 8; ++j) {
        const float radius = std::sqrt(-2.0f * cephes_log(1.0f - block[j]));
        float sin, cos;
        cephes_sincos(6.283185307179586f * block[j + 8], &sin, &cos);
        block[j] = radius * cos;
        block[j + 8] = radius * sin;
    }
}

// Blocks of 16.
void box_muller_plain(float* values, size_t blocks) {
    for (size_t i = 0; i < blocks; ++i)
        box_muller_block(values + 16 * i);
}

#ifdef BONSAI_RNG_VECTORS
#define BONSAI_AVX2 [[gnu::target("avx2,fma"), gnu::always_inline]] inline

BONSAI_AVX2 __m256 all(float value) {
    return _mm256_set1_ps(value);
}
BONSAI_AVX2 __m256i all_bits(uint32_t value) {
    return _mm256_set1_epi32(static_cast<int>(value));
}
// x with the sign turned where a bit of `flags` under `mask`, a single bit, is set.
BONSAI_AVX2 __m256 negate_if(__m256 x, __m256i flags, uint32_t mask) {
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(flags, all_bits(mask)), all_bits(mask));
    return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_and_si256(set, all_bits(0x80000000u))));
}

// cephes_log
BONSAI_AVX2 __m256 log_lanes(__m256 x) {
    const __m256i bits = _mm256_castps_si256(_mm256_max_ps(x, all(1.17549435e-38f)));
    __m256 exponent = _mm256_add_ps(
        _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), all_bits(127))),
        all(1.0f));
    __m256 m = _mm256_castsi256_ps(
        _mm256_or_si256(_mm256_and_si256(bits, all_bits(0x807fffffu)), all_bits(0x3f000000u)));
    const __m256 low = _mm256_cmp_ps(m, all(0.707106781186547524f), _CMP_LT_OQ);
    const __m256 less = _mm256_sub_ps(m, all(1.0f));
    m = _mm256_blendv_ps(less, _mm256_add_ps(less, m), low);
    exponent = _mm256_sub_ps(exponent, _mm256_and_ps(low, all(1.0f)));
    const __m256 z = _mm256_mul_ps(m, m);
    __m256 y = all(7.0376836292e-2f);
    for (const float c : kLogCoefficients)
        y = _mm256_fmadd_ps(y, m, all(c));
    y = _mm256_mul_ps(y, m);
    y = _mm256_fmadd_ps(y, z, _mm256_mul_ps(exponent, all(-2.12194440e-4f)));
    y = _mm256_fnmadd_ps(z, all(0.5f), y);
    return _mm256_fmadd_ps(exponent, all(0.693359375f), _mm256_add_ps(m, y));
}

// cephes_sincos
BONSAI_AVX2 void sincos_lanes(__m256 x, __m256* sin_out, __m256* cos_out) {
    const __m256i octant = _mm256_and_si256(
        _mm256_add_epi32(_mm256_cvttps_epi32(_mm256_mul_ps(x, all(1.27323954473516f))),
                         all_bits(1)),
        all_bits(~1u));
    const __m256 j = _mm256_cvtepi32_ps(octant);
    x = _mm256_fmadd_ps(j, all(-0.78515625f), x);
    x = _mm256_fmadd_ps(j, all(-2.4187564849853515625e-4f), x);
    x = _mm256_fmadd_ps(j, all(-3.77489497744594108e-8f), x);
    const __m256 z = _mm256_mul_ps(x, x);
    __m256 c = all(2.443315711809948e-5f);
    c = _mm256_fmadd_ps(c, z, all(-1.388731625493765e-3f));
    c = _mm256_fmadd_ps(c, z, all(4.166664568298827e-2f));
    c = _mm256_mul_ps(c, z);
    c = _mm256_add_ps(_mm256_fmsub_ps(c, z, _mm256_mul_ps(z, all(0.5f))), all(1.0f));
    __m256 s = all(-1.9515295891e-4f);
    s = _mm256_fmadd_ps(s, z, all(8.3321608736e-3f));
    s = _mm256_mul_ps(_mm256_fmadd_ps(s, z, all(-1.6666654611e-1f)), z);
    s = _mm256_fmadd_ps(s, x, x);
    const __m256 swap =
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(octant, all_bits(2)), all_bits(2)));
    *sin_out = negate_if(_mm256_blendv_ps(s, c, swap), octant, 4);
    // Where ((octant - 2) & 4) == 0, which is where the bit is set in its complement.
    *cos_out = negate_if(_mm256_blendv_ps(c, s, swap),
                         _mm256_xor_si256(_mm256_sub_epi32(octant, all_bits(2)), all_bits(~0u)), 4);
}

[[gnu::target("avx2,fma")]] void box_muller_lanes(float* values, size_t blocks) {
    for (size_t i = 0; i < blocks; ++i) {
        float* block = values + 16 * i;
        const __m256 radius = _mm256_sqrt_ps(
            _mm256_mul_ps(all(-2.0f), log_lanes(_mm256_sub_ps(all(1.0f), _mm256_loadu_ps(block)))));
        __m256 sin, cos;
        sincos_lanes(_mm256_mul_ps(all(6.283185307179586f), _mm256_loadu_ps(block + 8)), &sin,
                     &cos);
        _mm256_storeu_ps(block, _mm256_mul_ps(radius, cos));
        _mm256_storeu_ps(block + 8, _mm256_mul_ps(radius, sin));
    }
}

void box_muller(float* values, size_t blocks) {
    static const bool lanes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    lanes ? box_muller_lanes(values, blocks) : box_muller_plain(values, blocks);
}
#else
void box_muller(float* values, size_t blocks) {
    box_muller_plain(values, blocks);
}
#endif

} // namespace

void torch_cpu_randn(uint64_t seed, float* out, size_t count) {
    assert(count >= 16);
    Uniforms uniforms(seed);
    for (size_t i = 0; i < count; ++i)
        out[i] = uniforms.next();
    box_muller(out, count / 16);
    if (count % 16 != 0) { // the last 16 values are drawn anew and overlap
        float* tail = out + count - 16;
        for (int i = 0; i < 16; ++i)
            tail[i] = uniforms.next();
        box_muller(tail, 1);
    }
}

} // namespace bonsai
