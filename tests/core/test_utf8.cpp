// SPDX-License-Identifier: Apache-2.0
// Text from files on its way into messages.
#include "core/utf8.h"

#include "core/status.h"
#include "test.h"

using namespace bonsai;

TEST(legible_text_stays) {
    for (const char* text : {"", "plain", "caf\xc3\xa9 \xe6\xa0\x91 \xf0\x9f\x8c\xb3 \xc2\xa0."})
        CHECK(legible(text) == text);
}

TEST(control_characters_become_question_marks) {
    CHECK(legible(std::string("a\0b\x1b[31m\n\x7f", 10)) == "a?b?[31m?\?");
    CHECK(legible("\xc2\x9b"
                  "31m \xc2\x80\xc2\x9f") == "?31m ??"); // CSI in one character
}

TEST(broken_utf8_becomes_question_marks) {
    CHECK(legible("a\xff\xfe!") == "a?\?!");
    CHECK(legible("\xe2\x82") == "??");              // cut off
    CHECK(legible("\xc0\x80") == "??");              // overlong
    CHECK(legible("\xed\xa0\x80") == "?\?\?");       // half of a surrogate pair
    CHECK(legible("\xf4\x90\x80\x80") == "?\?\?\?"); // past U+10FFFF
    CHECK(legible("\xc2") == "?");
}

TEST(every_message_is_legible) {
    CHECK(fail(ErrorCode::kFormat, "key %s", "\x1b]0;x\xff").message() == "key ?]0;x?");
}
