// SPDX-License-Identifier: Apache-2.0
// Looking at many floats, and turning pixels into bytes: loops that compilers make vectors of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/half.h"

namespace bonsai {

// No NaN and no infinity: their bits without the sign are the largest.
inline bool all_finite(const float* values, size_t count) {
    int32_t largest = 0;
    for (size_t i = 0; i < count; ++i)
        largest = std::max(largest, static_cast<int32_t>(f32_bits(values[i]) & 0x7fffffffu));
    return largest < 0x7f800000;
}

// From [-1, 1], halves to even as numpy rounds. Behind a sum of 1.5 * 2^23 and a number below 256
// the low byte is the number rounded; unlike std::nearbyint, compilers make vectors of it.
inline uint8_t to_byte(float pixel) {
    const float value = std::min(1.0f, std::max(0.0f, pixel / 2.0f + 0.5f));
    return static_cast<uint8_t>(f32_bits(value * 255.0f + 12582912.0f));
}

} // namespace bonsai
