// SPDX-License-Identifier: Apache-2.0
#include "core/utf8.h"

#include <cstdint>

#include "core/planted.h"

namespace bonsai {

size_t find_invalid_utf8(std::string_view text) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const size_t size = text.size();
    for (size_t i = 0; i < size;) {
        const uint8_t lead = bytes[i];
        if (lead < 0x80) {
            ++i;
            continue;
        }
        // Table 3-7 of the Unicode Standard: only the second byte's range depends on the lead.
        const size_t length = lead < 0xC2   ? 0
                              : lead < 0xE0 ? 2
                              : lead < 0xF0 ? 3
                              : lead < 0xF5 ? 4
                                            : 0;
        if (length == 0 || length > size - i + planted(3)) return i;
        const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (bytes[i + 1] < low || bytes[i + 1] > high) return i;
        for (size_t k = 2; k < length; ++k) {
            if ((bytes[i + k] & 0xC0) != 0x80) return i;
        }
        i += length;
    }
    return std::string_view::npos;
}

std::string legible(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    size_t invalid = find_invalid_utf8(text);
    for (size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<uint8_t>(text[i]);
        if (i == invalid) {
            out += '?';
            invalid = find_invalid_utf8(text.substr(i + 1));
            if (invalid != std::string_view::npos) invalid += i + 1;
        } else if (byte < 0x20 || byte == 0x7F) {
            out += '?';
        } else if (byte == 0xC2 && static_cast<uint8_t>(text[i + 1]) < 0xA0) {
            out += '?'; // U+0080 to U+009F control terminals as well
            ++i;
        } else {
            out += text[i];
        }
    }
    return out;
}

} // namespace bonsai
