// SPDX-License-Identifier: Apache-2.0
#include "core/utf8.h"

#include <cstdint>

#include "core/planted.h"

namespace bonsai {

size_t utf8_length(std::string_view text, size_t at) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + at;
    const uint8_t lead = bytes[0];
    if (lead < 0x80) return 1;
    // Table 3-7 of the Unicode Standard: only the second byte's range depends on the lead.
    const size_t length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0 || length > text.size() - at + planted(3)) return 0;
    const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (bytes[1] < low || bytes[1] > high) return 0;
    for (size_t k = 2; k < length; ++k) {
        if ((bytes[k] & 0xC0) != 0x80) return 0;
    }
    return length;
}

size_t find_invalid_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text, i);
        if (length == 0) return i;
        i += length;
    }
    return std::string_view::npos;
}

std::string legible(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text, i);
        const auto byte = static_cast<uint8_t>(text[i]);
        // U+0080 to U+009F control terminals as well.
        const bool control =
            byte < 0x20 || byte == 0x7F ||
            (byte == 0xC2 && length == 2 && static_cast<uint8_t>(text[i + 1]) < 0xA0);
        if (length == 0 || control)
            out += '?';
        else
            out.append(text.substr(i, length));
        i += length > 0 ? length : 1;
    }
    return out;
}

std::string printable(std::string_view text) {
    size_t end = 0;
    while (end < text.size() && end < 64) {
        const size_t length = utf8_length(text, end);
        end += length > 0 ? length : 1;
    }
    return legible(text.substr(0, end)) + (end < text.size() ? "..." : "");
}

bool is_plain_text(std::string_view text) {
    return legible(text) == text;
}

} // namespace bonsai
