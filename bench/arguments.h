// SPDX-License-Identifier: Apache-2.0
// Words of the measuring programs' command lines.
#pragma once

#include <cstdio>
#include <string>

#include "backends/backend.h"

namespace bonsai::bench {

inline bool parse_precision(const std::string& text, Precision* out) {
    *out = text == "exact" ? Precision::kExact : Precision::kFast;
    return text == "exact" || text == "fast";
}

// "512x384" at the beginning of text; *used: characters of it. Sides that pictures can have.
inline bool parse_size(const char* text, int64_t* width, int64_t* height, int* used) {
    constexpr long long kLeast = 16, kMost = 16384;
    long long w = 0, h = 0;
    if (std::sscanf(text, "%lldx%lld%n", &w, &h, used) != 2) return false;
    *width = w, *height = h;
    return w >= kLeast && w <= kMost && w % kLeast == 0 && h >= kLeast && h <= kMost &&
           h % kLeast == 0;
}

} // namespace bonsai::bench
