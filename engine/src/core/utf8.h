// SPDX-License-Identifier: Apache-2.0
// UTF-8 as far as every reader of foreign bytes needs it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bonsai {

// Bytes of the character that begins at text[at], 1 to 4; 0 if no well-formed one does.
size_t utf8_length(std::string_view text, size_t at);

// Byte offset of the first sequence that is not well-formed UTF-8 (overlong forms, surrogates and
// values past U+10FFFF are not), or std::string_view::npos.
size_t find_invalid_utf8(std::string_view text);

// The text made fit for a message on any terminal: every control character and every byte that is
// not part of well-formed UTF-8 becomes a question mark.
std::string legible(std::string_view text);
// The same, cut after some 64 bytes: for text that a file makes as long as it likes.
std::string printable(std::string_view text);
// Whether all of it can be shown as it is.
bool is_plain_text(std::string_view text);

} // namespace bonsai
