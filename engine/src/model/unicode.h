// SPDX-License-Identifier: Apache-2.0
// Unicode as the Qwen tokenizer sees it: UTF-8, the character classes of its regex, and
// normalisation form C. Classes and normalisation data are those of the `tokenizers` library, not
// of one Unicode version; see engine/tools/make_unicode_tables.py, which generates the tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/utf8.h"

namespace bonsai {

// \p{L}, \p{N} and \s exclude each other; kOther is everything else, marks and unassigned ones
// included.
enum class CharClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

CharClass char_class(char32_t code_point);

// Appends the code points of well-formed UTF-8.
void decode_utf8(std::string_view text, std::vector<char32_t>* out);

// Writes the 1 to 4 bytes of a code point and returns their number.
int encode_utf8(char32_t code_point, uint8_t bytes[4]);

// Replaces the text by its normalisation form C.
void normalize_nfc(std::vector<char32_t>* text);

} // namespace bonsai
