// SPDX-License-Identifier: Apache-2.0
// Ids back to text: the check that a tokenizer neither loses nor invents bytes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "model/unicode.h"
#include "require.h"

namespace fuzz {

inline std::string utf8_of(const std::vector<char32_t>& text) {
    std::string out;
    for (const char32_t c : text) {
        uint8_t bytes[4];
        out.append(reinterpret_cast<char*>(bytes),
                   static_cast<size_t>(bonsai::encode_utf8(c, bytes)));
    }
    return out;
}

// The 256 characters of the byte-level alphabet, in byte order.
inline std::vector<std::string> byte_alphabet() {
    std::vector<std::string> out;
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool printable =
            (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        out.push_back(utf8_of({printable ? byte : next++}));
    }
    return out;
}

// Bytes of a token of the BPE vocabulary, all of whose characters are of the alphabet.
inline std::string bytes_of(std::string_view token) {
    static const std::map<char32_t, char> bytes = [] {
        std::map<char32_t, char> out;
        std::vector<char32_t> point;
        for (const std::string& character : byte_alphabet()) {
            point.clear();
            bonsai::decode_utf8(character, &point);
            out.emplace(point[0], static_cast<char>(out.size()));
        }
        return out;
    }();
    std::vector<char32_t> points;
    bonsai::decode_utf8(token, &points);
    std::string out;
    for (const char32_t point : points) {
        const auto byte = bytes.find(point);
        require(byte != bytes.end(), "tokens of a text are made of bytes", std::string(token));
        out.push_back(byte->second);
    }
    return out;
}

// Encodes the text, which lies in a block of exactly its size, and checks the ids against `data`,
// from which the tokenizer was made.
inline void check_encode(const bonsai::Tokenizer& tokenizer, const bonsai::TokenizerData& data,
                         std::string_view text) {
    const std::vector<char> exact(text.begin(), text.end());
    const std::string_view view(exact.data(), exact.size());
    std::vector<int32_t> ids;
    const bonsai::Status status = tokenizer.encode(view, &ids);
    require(status.ok() == bonsai::Tokenizer::check_text(view).ok(), "refused for a reason",
            status.message());
    if (!status.ok()) return require_clean(status.message(), false);

    // Form C is taken between added tokens; a text without any is compared whole.
    bool plain = true;
    std::string joined;
    for (const int32_t id : ids) {
        require(id >= 0 && id < tokenizer.vocab_size(), "ids are in the vocabulary", "");
        plain = plain && data.types[static_cast<size_t>(id)] == 1;
        if (plain) joined += bytes_of(data.tokens[static_cast<size_t>(id)]);
    }
    if (plain) {
        std::vector<char32_t> points;
        bonsai::decode_utf8(view, &points);
        bonsai::normalize_nfc(&points);
        require(joined == utf8_of(points), "ids spell the text", std::string(text));
    }
    std::vector<int32_t> padded;
    int32_t real = 0;
    bool truncated = false;
    constexpr int32_t kRows = 16;
    require(tokenizer.encode_padded(view, kRows, &padded, &real, &truncated).ok(), "padding", "");
    require(padded.size() == kRows && truncated == (ids.size() > kRows), "rows as asked", "");
    for (size_t i = 0; i < kRows; ++i)
        require(padded[i] == (i < ids.size() ? ids[i] : data.pad_id), "cut and padded", "");
}

} // namespace fuzz
