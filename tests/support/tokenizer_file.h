// SPDX-License-Identifier: Apache-2.0
// The tests' own text form of a tokenizer, written by tokenizer_files.py. One entry a line, in id
// or rank order:
//   p <padding id>      t <type> <token>      m <left> <right>
// In tokens and merges a \xNN is a byte: backslashes and control characters are written so.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/tokenizer.h"

namespace test {

// The whole file; "" if it cannot be read.
inline std::string read_text_file(const std::string& path) {
    std::string text;
    if (std::FILE* file = std::fopen(path.c_str(), "rb")) {
        char buffer[65536];
        while (const size_t n = std::fread(buffer, 1, sizeof buffer, file))
            text.append(buffer, n);
        std::fclose(file);
    }
    return text;
}

// Resolves \xNN in place and returns the shortened view.
inline std::string_view unescape(char* begin, size_t size) {
    size_t out = 0;
    for (size_t i = 0; i < size; ++i, ++out) {
        begin[out] = begin[i];
        if (begin[i] == '\\' && i + 3 < size && begin[i + 1] == 'x') {
            const char digits[3] = {begin[i + 2], begin[i + 3], 0};
            begin[out] = static_cast<char>(std::strtol(digits, nullptr, 16));
            i += 3;
        }
    }
    return {begin, out};
}

// The views in the result point into *text, which is modified.
inline bonsai::TokenizerData parse_tokenizer(std::string* text) {
    bonsai::TokenizerData data;
    for (size_t at = 0; at < text->size();) {
        size_t end = text->find('\n', at);
        if (end == std::string::npos) end = text->size();
        char* line = &(*text)[at];
        const size_t size = end - at;
        if (size > 2 && line[0] == 'p') data.pad_id = std::atoi(line + 2);
        if (size > 2 && line[0] == 'm') data.merges.push_back(unescape(line + 2, size - 2));
        if (size >= 4 && line[0] == 't') {
            data.types.push_back(line[2] - '0');
            data.tokens.push_back(unescape(line + 4, size - 4));
        }
        at = end + 1;
    }
    return data;
}

} // namespace test
