// SPDX-License-Identifier: Apache-2.0
#include "text.h"

#include <algorithm>
#include <cstdio>

namespace bonsai::cli {
namespace {

// Edit distance with insertions, deletions and substitutions of one character.
size_t distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j)
        row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
        }
    }
    return row[b.size()];
}

// Length of the valid UTF-8 sequence at text[at], 0 when there is none. Rejects overlong forms and
// surrogates.
size_t utf8_length(const std::string& text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(at);
    const size_t length = lead < 0x80                    ? 1
                          : lead >= 0xc2 && lead <= 0xdf ? 2
                          : lead >= 0xe0 && lead <= 0xef ? 3
                          : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                         : 0;
    if (length == 0 || at + length > text.size()) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((byte(at + i) & 0xc0) != 0x80) return 0;
    if ((lead == 0xe0 && byte(at + 1) < 0xa0) || (lead == 0xed && byte(at + 1) > 0x9f) ||
        (lead == 0xf0 && byte(at + 1) < 0x90) || (lead == 0xf4 && byte(at + 1) > 0x8f))
        return 0;
    return length;
}

// Spaces, punctuation and invisible direction marks outside ASCII: U+0080-00BF, U+2000-206F,
// U+3000-303F, U+FE00-FEFF.
bool is_separator(const std::string& c) {
    const auto in = [&](const char* low, const char* high) { return c >= low && c <= high; };
    return in("\xc2\x80", "\xc2\xbf") || in("\xe2\x80\x80", "\xe2\x81\xaf") ||
           in("\xe3\x80\x80", "\xe3\x80\xbf") || in("\xef\xb8\x80", "\xef\xbb\xbf");
}

std::string print(const char* format, double value, const char* unit) {
    char out[48];
    std::snprintf(out, sizeof(out), format, value, unit);
    return out;
}

} // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
    std::string best;
    size_t best_distance = 1 + (word.size() + 2) / 3; // a slip changes up to a third
    for (const std::string& candidate : candidates) {
        const size_t d = distance(word, candidate);
        if (d < best_distance) {
            best = candidate;
            best_distance = d;
        }
    }
    return best;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
    const std::string guess = nearest(word, candidates);
    return guess.empty() ? "" : "; did you mean " + guess + "?";
}

std::string format_bytes(uint64_t bytes) {
    const auto value = static_cast<double>(bytes);
    if (value >= 999.5e6) return print("%.2f %s", value / 1e9, "GB");
    if (value >= 999.5e3) return print(value >= 99.95e6 ? "%.0f %s" : "%.1f %s", value / 1e6, "MB");
    return print("%.0f %s", value / 1e3, "kB");
}

std::string format_clock(double seconds) {
    const auto total = static_cast<long long>(seconds < 0 ? 0 : seconds + 0.5);
    const long long hours = total / 3600, minutes = total / 60 % 60, rest = total % 60;
    char out[48];
    if (hours > 0)
        std::snprintf(out, sizeof(out), "%lld:%02lld:%02lld", hours, minutes, rest);
    else
        std::snprintf(out, sizeof(out), "%lld:%02lld", minutes, rest);
    return out;
}

std::string format_seconds(double seconds) {
    return print(seconds < 9.95 ? "%.2f %s" : "%.1f %s", seconds, "s");
}

std::string json_string(const std::string& text) {
    std::string out = "\"";
    for (size_t at = 0; at < text.size();) {
        const size_t length = utf8_length(text, at);
        const char c = text[at];
        if (length == 0) {
            out += "\\ufffd";
            ++at;
            continue;
        }
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof(escape), "\\u%04x", c);
            out += escape;
        } else {
            out.append(text, at, length);
        }
        at += length;
    }
    return out + "\"";
}

std::string one_line(const std::string& text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t length = utf8_length(text, at);
        const auto c = static_cast<unsigned char>(text[at]);
        const bool control =
            c < 0x20 || c == 0x7f || (c == 0xc2 && static_cast<unsigned char>(text[at + 1]) < 0xa0);
        if (length == 0 || control)
            out += '?';
        else
            out.append(text, at, length);
        at += length > 0 ? length : 1;
    }
    return out;
}

std::string slug(const std::string& prompt) {
    constexpr size_t kLimit = 48;
    std::string out;
    for (size_t at = 0; at < prompt.size();) {
        const size_t length = std::max<size_t>(1, utf8_length(prompt, at));
        std::string c = prompt.substr(at, length);
        at += length;
        if (length == 1) {
            const char lower = c[0] >= 'A' && c[0] <= 'Z' ? static_cast<char>(c[0] + 32) : c[0];
            const bool keep = (lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9');
            c = keep ? std::string(1, lower) : "-";
        } else if (is_separator(c)) {
            c = "-";
        }
        if (c == "-" && (out.empty() || out.back() == '-')) continue;
        if (out.size() + c.size() > kLimit) break;
        out += c;
    }
    while (!out.empty() && out.back() == '-')
        out.pop_back();
    return out.empty() ? "untitled" : out;
}

} // namespace bonsai::cli
