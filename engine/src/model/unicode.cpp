// SPDX-License-Identifier: Apache-2.0
#include "model/unicode.h"

#include <algorithm>
#include <iterator>

namespace bonsai {
namespace {

struct Decomposition {
    uint32_t code_point;
    uint16_t offset; // into kDecompositionPool
    uint16_t length;
};

struct Composition {
    uint32_t first, second, composite;
};

#include "model/unicode_tables.inc"

// Hangul syllables are composed by arithmetic: Unicode Standard, section 3.12.
constexpr char32_t kHangulS = 0xAC00, kHangulL = 0x1100, kHangulV = 0x1161, kHangulT = 0x11A7;
constexpr char32_t kCountL = 19, kCountV = 21, kCountT = 28;
constexpr char32_t kCountS = kCountL * kCountV * kCountT;

// The value at a code point in a sorted table of `first code point << bits | value`.
template <int bits, size_t count>
uint32_t lookup(const uint32_t (&changes)[count], char32_t code_point) {
    const uint32_t last_key = (static_cast<uint32_t>(code_point) << bits) | ((1u << bits) - 1);
    const uint32_t* next = std::upper_bound(changes, changes + count, last_key);
    return next[-1] & ((1u << bits) - 1); // the first entry is for U+0000
}

// Inside normalize_nfc a character carries its combining class in the top byte (a code point has 21
// bits).
constexpr int kCccShift = 24;
constexpr uint32_t kCodePointMask = 0x1FFFFF;

void append_with_class(char32_t code_point, std::vector<uint32_t>* out) {
    const uint32_t ccc = lookup<8>(kCccChanges, code_point);
    out->push_back(static_cast<uint32_t>(code_point) | ccc << kCccShift);
}

void append_decomposed(char32_t code_point, std::vector<uint32_t>* out) {
    if (code_point < 0xC0) { // nothing below decomposes or combines
        out->push_back(static_cast<uint32_t>(code_point));
        return;
    }
    const char32_t syllable = code_point - kHangulS; // wraps to a large value below the block
    if (syllable < kCountS) {
        out->push_back(kHangulL + syllable / (kCountV * kCountT));
        out->push_back(kHangulV + syllable / kCountT % kCountV);
        if (syllable % kCountT != 0) out->push_back(kHangulT + syllable % kCountT);
        return;
    }
    const auto* entry =
        std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code_point,
                         [](const Decomposition& d, char32_t cp) { return d.code_point < cp; });
    if (entry == std::end(kDecompositions) || entry->code_point != code_point) {
        append_with_class(code_point, out);
        return;
    }
    for (int i = 0; i < entry->length; ++i)
        append_with_class(kDecompositionPool[entry->offset + i], out);
}

// Canonical ordering: each run of non-starters, stably by combining class.
void sort_marks(std::vector<uint32_t>* text) {
    const auto is_starter = [](uint32_t c) { return c >> kCccShift == 0; };
    auto run = text->begin();
    while (true) {
        run = std::find_if_not(run, text->end(), is_starter);
        if (run == text->end()) return;
        const auto end = std::find_if(run, text->end(), is_starter);
        if (end - run > 1)
            std::stable_sort(
                run, end, [](uint32_t a, uint32_t b) { return a >> kCccShift < b >> kCccShift; });
        run = end;
    }
}

// The primary composite of two characters, 0 if there is none.
char32_t compose(char32_t first, char32_t second) {
    if (first - kHangulL < kCountL && second - kHangulV < kCountV)
        return kHangulS + ((first - kHangulL) * kCountV + (second - kHangulV)) * kCountT;
    if (first - kHangulS < kCountS && (first - kHangulS) % kCountT == 0 && second > kHangulT &&
        second < kHangulT + kCountT)
        return first + (second - kHangulT);
    const auto* entry = std::lower_bound(
        std::begin(kCompositions), std::end(kCompositions), 0, [=](const Composition& c, int) {
            return c.first != first ? c.first < first : c.second < second;
        });
    if (entry == std::end(kCompositions) || entry->first != first || entry->second != second)
        return 0;
    return entry->composite;
}

} // namespace

CharClass char_class(char32_t code_point) {
    return static_cast<CharClass>(lookup<2>(kClassChanges, code_point));
}

void decode_utf8(std::string_view text, std::vector<char32_t>* out) {
    const auto* p = reinterpret_cast<const uint8_t*>(text.data());
    const uint8_t* end = p + text.size();
    while (p < end) {
        const char32_t lead = *p;
        if (lead < 0x80) {
            out->push_back(lead);
            p += 1;
        } else if (lead < 0xE0) {
            out->push_back((lead & 0x1F) << 6 | (p[1] & 0x3Fu));
            p += 2;
        } else if (lead < 0xF0) {
            out->push_back((lead & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu));
            p += 3;
        } else {
            out->push_back((lead & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 |
                           (p[3] & 0x3Fu));
            p += 4;
        }
    }
}

int encode_utf8(char32_t code_point, uint8_t bytes[4]) {
    if (code_point < 0x80) {
        bytes[0] = static_cast<uint8_t>(code_point);
        return 1;
    }
    const int length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const uint8_t kLeadBits[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = length - 1; i > 0; --i) {
        bytes[i] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    bytes[0] = static_cast<uint8_t>(kLeadBits[length] | code_point);
    return length;
}

void normalize_nfc(std::vector<char32_t>* text) {
    // Below U+0300, the first combining mark, all text is in form C already.
    if (std::all_of(text->begin(), text->end(), [](char32_t c) { return c < 0x300; })) return;
    std::vector<uint32_t> decomposed;
    decomposed.reserve(text->size() + text->size() / 8);
    for (char32_t c : *text)
        append_decomposed(c, &decomposed);
    sort_marks(&decomposed);

    text->clear();
    size_t starter = SIZE_MAX; // where in *text the last starter is
    uint32_t last_ccc = 0;     // of the last character in *text
    for (uint32_t c : decomposed) {
        const uint32_t ccc = c >> kCccShift;
        const char32_t code_point = c & kCodePointMask;
        // A character left between the starter and this one blocks it unless its class is lower.
        if (starter != SIZE_MAX && (starter + 1 == text->size() || last_ccc < ccc)) {
            const char32_t composite = compose((*text)[starter], code_point);
            if (composite != 0) {
                (*text)[starter] = composite;
                continue;
            }
        }
        if (ccc == 0) starter = text->size();
        last_ccc = ccc;
        text->push_back(code_point);
    }
}

} // namespace bonsai
