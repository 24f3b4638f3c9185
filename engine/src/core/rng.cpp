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

// A fused multiply-add is a call where the compiler may not assume the instruction: ten times the
// work. These functions are therefore compiled twice; the results are the same by definition.
#if defined(__x86_64__) && defined(__GNUC__)
#define BONSAI_INLINE [[gnu::always_inline]] inline
#else
#define BONSAI_INLINE inline
#endif

namespace bonsai {

namespace {

BONSAI_INLINE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

BONSAI_INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Natural logarithm of a positive float.
BONSAI_INLINE float cephes_log(float x) {
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
    static const float coefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f,
                                         1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                         -2.4999993993e-1f, 3.3333331174e-1f};
    float y = 7.0376836292e-2f;
    for (const float c : coefficients)
        y = std::fma(y, m, c);
    y = y * m;
    y = std::fma(y, z, exponent * -2.12194440e-4f);
    y = std::fma(-z, 0.5f, y);
    return std::fma(exponent, 0.693359375f, m + y);
}

// Sine and cosine of an angle in [0, 2 pi).
BONSAI_INLINE void cephes_sincos(float x, float* sin_out, float* cos_out) {
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

BONSAI_INLINE void box_muller_block(float* block) {
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
#if defined(__x86_64__) && defined(__GNUC__)
[[gnu::target("fma")]] void box_muller_fused(float* values, size_t blocks) {
    for (size_t i = 0; i < blocks; ++i)
        box_muller_block(values + 16 * i);
}
void box_muller(float* values, size_t blocks) {
    static const bool fused = __builtin_cpu_supports("fma");
    fused ? box_muller_fused(values, blocks) : box_muller_plain(values, blocks);
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
