// SPDX-License-Identifier: Apache-2.0
// What writer and reader of PNG share. A file is the signature, then chunks of [length u32 BE]
// [type][data][CRC-32 of type and data]. See the PNG specification, third edition, section 5.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace bonsai {

constexpr uint8_t kPngSignature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

// The remainder of each byte.
inline constexpr std::array<uint32_t, 256> kPngCrcTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t n = 0; n < 256; ++n) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; ++bit)
            c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        table[n] = c;
    }
    return table;
}();

inline uint32_t png_crc32(const uint8_t* data, size_t size) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < size; ++i)
        c = kPngCrcTable[(c ^ data[i]) & 0xff] ^ (c >> 8);
    return c ^ 0xffffffffu;
}

} // namespace bonsai
