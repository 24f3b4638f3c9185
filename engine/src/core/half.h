// SPDX-License-Identifier: Apache-2.0
// Scalar conversions between f32 and the two 16-bit float formats, in integer arithmetic: bit-exact
// on every processor, rounding to nearest even, infinities kept, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace bonsai {

inline uint32_t f32_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float f32_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float bf16_to_f32(uint16_t h) {
    return f32_from_bits(static_cast<uint32_t>(h) << 16);
}

inline uint16_t f32_to_bf16(float value) {
    const uint32_t bits = f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) // rounding could carry a NaN's mantissa into infinity
        return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = h >> 10 & 0x1fu;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) { // infinity, or a NaN, which becomes quiet as in hardware
        const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
        return f32_from_bits(sign | 0x7f800000u | quiet | mantissa << 13);
    }
    if (exponent != 0) return f32_from_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
    // Subnormal: mantissa * 2^-24, exact in f32.
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return f32_from_bits(sign | f32_bits(magnitude));
}

inline uint16_t f32_to_f16(float value) {
    const uint32_t bits = f32_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) // 65520 and above round to infinity
        return static_cast<uint16_t>(sign | 0x7c00u);
    uint32_t kept, rest, half;
    if (magnitude >=
        0x38800000u) { // normal in f16: rebias the exponent from 127 to 15, drop 13 bits
        kept = (magnitude - (112u << 23)) >> 13;
        rest = magnitude & 0x1fffu;
        half = 0x1000u;
    } else { // subnormal: units of 2^-24
        const uint32_t exponent = magnitude >> 23;
        if (exponent < 102) // below 2^-25
            return static_cast<uint16_t>(sign);
        const uint32_t shift = 126 - exponent;
        const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        kept = mantissa >> shift;
        rest = mantissa & ((1u << shift) - 1);
        half = 1u << (shift - 1);
    }
    if (rest > half || (rest == half && (kept & 1u) != 0)) ++kept;
    return static_cast<uint16_t>(sign | kept);
}

} // namespace bonsai
