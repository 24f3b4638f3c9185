// SPDX-License-Identifier: Apache-2.0
// The tokenizer without Python: goldens of the `tokenizers` library for a small Qwen-style
// vocabulary, the order of merges, limits and refusals. The exhaustive comparison with the library
// is test_tokenizer.py.
#include "model/tokenizer.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/unicode.h"
#include "support/tokenizer_file.h"
#include "test.h"

using bonsai::CharClass;
using bonsai::ErrorCode;
using bonsai::Status;
using bonsai::Tokenizer;
using bonsai::TokenizerData;

namespace {

using Ids = std::vector<int32_t>;

const std::string kFolder = std::string(BONSAI_TEST_DATA) + "/tokenizer/tiny";

// The tiny vocabulary (319 tokens) with entries in the form of tokenizer_file.h appended.
struct Tiny {
    std::string file;
    TokenizerData data;

    explicit Tiny(const std::string& more = "")
        : file(test::read_text_file(kFolder + "/tokenizer.txt") + more),
          data(test::parse_tokenizer(&file)) {}
};

std::unique_ptr<Tokenizer> make(const TokenizerData& data) {
    std::unique_ptr<Tokenizer> tokenizer;
    CHECK_OK(Tokenizer::create(data, &tokenizer));
    return tokenizer;
}

Status create(const TokenizerData& data) {
    std::unique_ptr<Tokenizer> tokenizer;
    return Tokenizer::create(data, &tokenizer);
}

Ids encode(const Tokenizer& tokenizer, std::string_view text) {
    Ids ids;
    CHECK_OK(tokenizer.encode(text, &ids));
    return ids;
}

Ids parse_ids(const std::string& text) {
    Ids ids;
    char* at = nullptr;
    for (const char* p = text.c_str(); *p != 0 && *p != '\n'; p = *at == ' ' ? at + 1 : at)
        ids.push_back(static_cast<int32_t>(std::strtol(p, &at, 10)));
    return ids;
}

std::u32string nfc(std::u32string_view text) {
    std::vector<char32_t> points(text.begin(), text.end());
    bonsai::normalize_nfc(&points);
    return {points.begin(), points.end()};
}

} // namespace

TEST(goldens_of_the_library) {
    const Tiny tiny;
    const auto tokenizer = make(tiny.data);
    std::string golden = test::read_text_file(kFolder + "/golden.txt");
    int cases = 0;
    for (size_t at = 0; at < golden.size(); ++cases) {
        const size_t tab = golden.find('\t', at), end = golden.find('\n', at);
        const Ids expected = parse_ids(golden.substr(tab + 1, end - tab - 1));
        const std::string_view text = test::unescape(&golden[at], tab - at);
        if (encode(*tokenizer, text) != expected)
            ::test::failed(__FILE__, __LINE__, "ids of \"" + std::string(text) + "\"");
        at = end + 1;
    }
    CHECK(cases >= 20);
}

TEST(merges_by_rank_then_from_the_left) {
    const Tiny tiny("t 1 qq\nt 1 qqq\nt 1 zx\nt 1 xj\nt 1 qz\nm q q\nm qq q\nm x j\nm z x\n");
    const auto tokenizer = make(tiny.data);
    const int32_t qq = 319, qqq = 320, xj = 322;
    const int32_t q = encode(*tokenizer, "q")[0], z = encode(*tokenizer, "z")[0];
    CHECK(encode(*tokenizer, "qqq") == Ids({qqq}));
    CHECK(encode(*tokenizer, "qqqq") == Ids({qq, qq})); // both pairs rank before "qq q"
    CHECK(encode(*tokenizer, "zxj") == Ids({z, xj}));   // "x j" ranks before "z x"
    CHECK(encode(*tokenizer, "qz") == Ids({q, z}));     // a token, but no merge leads to it
}

TEST(a_pair_listed_twice_has_the_last_rank) {
    const Tiny tiny("t 1 zx\nt 1 xj\nm z x\nm x j\nm z x\n");
    const auto tokenizer = make(tiny.data);
    CHECK(encode(*tokenizer, "zxj") == Ids({encode(*tokenizer, "z")[0], 320}));
}

TEST(added_tokens_leftmost_then_longest) {
    const Tiny tiny("t 4 <a\nt 4 <ab\nt 4 b<\nt 5 [PAD322]\nt 3 <|x|>\n");
    const auto tokenizer = make(tiny.data);
    CHECK(tokenizer->vocab_size() == 324);
    CHECK(encode(*tokenizer, "<a") == Ids({319}));
    CHECK(encode(*tokenizer, "<ab<a") == Ids({320, 319}));
    CHECK(encode(*tokenizer, "b<a") == Ids({321, encode(*tokenizer, "a")[0]}));
    CHECK(encode(*tokenizer, "<|x|>") == Ids({323}));
    CHECK(encode(*tokenizer, "[PAD322]").size() > 1); // fillers are not matched
}

TEST(padding_and_truncation) {
    const Tiny tiny;
    const auto tokenizer = make(tiny.data);
    const Ids full = encode(*tokenizer, "<|im_start|>123");
    CHECK(full.size() == 4);
    Ids ids;
    int32_t real = -1;
    bool truncated = true;
    CHECK_OK(tokenizer->encode_padded("<|im_start|>123", 6, &ids, &real, &truncated));
    CHECK(ids == Ids({full[0], full[1], full[2], full[3], 314, 314}));
    CHECK(real == 4 && !truncated);
    CHECK_OK(tokenizer->encode_padded("<|im_start|>123", 4, &ids, &real, &truncated));
    CHECK(ids == full && real == 4 && !truncated);
    CHECK_OK(tokenizer->encode_padded("<|im_start|>123", 2, &ids, &real, &truncated));
    CHECK(ids == Ids({full[0], full[1]}) && real == 2 && truncated);
    CHECK_OK(tokenizer->encode_padded("", 2, &ids, &real, &truncated));
    CHECK(ids == Ids({314, 314}) && real == 0 && !truncated);
    CHECK_FAILS(tokenizer->encode_padded("a", 0, &ids, &real, &truncated), ErrorCode::kArgument,
                "max_tokens is 0");
}

TEST(refuses_bad_text) {
    const Tiny tiny;
    const auto tokenizer = make(tiny.data);
    Ids ids;
    CHECK_FAILS(tokenizer->encode("ab\xC3(", &ids), ErrorCode::kArgument,
                "invalid UTF-8 at byte 2");
    CHECK_FAILS(tokenizer->encode("\xED\xA0\x80", &ids), ErrorCode::kArgument, "byte 0 (0xed)");
    CHECK_FAILS(tokenizer->encode("\xE6\xA8", &ids), ErrorCode::kArgument, "byte 0 (0xe6)");
    CHECK_FAILS(tokenizer->encode(std::string(Tokenizer::kMaxTextBytes + 1, 'a'), &ids),
                ErrorCode::kArgument, "1048577 bytes; expected at most 1048576");
    CHECK_OK(tokenizer->encode(std::string(Tokenizer::kMaxTextBytes, 'a'), &ids));
    CHECK_OK(tokenizer->encode(std::string_view("\0", 1), &ids));
    CHECK(ids.size() == 1);
}

TEST(refuses_bad_files) {
    CHECK_FAILS(create({}), ErrorCode::kFormat, "0 tokens");
    const auto refused = [](const std::string& more, ErrorCode code, const char* message) {
        CHECK_FAILS(create(Tiny(more).data), code, message);
    };
    refused("t 2 unk\n", ErrorCode::kUnsupported, "token 319, \"unk\", is of type 2");
    refused("t 1 e\n", ErrorCode::kFormat, "and 319 are both \"e\"");
    refused("t 3 \n", ErrorCode::kFormat, "token 319 is an added token without text");
    refused("t 4 a\\xff\n", ErrorCode::kFormat, "token 319, \"a\\xff\", is not valid UTF-8");
    refused("m ab\n", ErrorCode::kFormat, "is \"ab\"; expected two tokens");
    refused("m a b c\n", ErrorCode::kFormat, "is \"a b c\"; expected two tokens");
    refused("m a \n", ErrorCode::kFormat, "is \"a \"; expected two tokens");
    refused("m  a\n", ErrorCode::kFormat, "is \" a\"; expected two tokens");
    refused("m a \xC3\xA9\xC3\xA9\n", ErrorCode::kFormat, "\"\\xc3\\xa9\\xc3\\xa9\" is not in the");
    refused("m z q\n", ErrorCode::kFormat, "\"zq\" is not in the vocabulary");
    refused("t 5 zq\nm z q\n", ErrorCode::kFormat, "\"zq\" is not in the vocabulary");
    refused("p 319\n", ErrorCode::kFormat, "padding id 319; expected 0 to 318");
    refused("p -1\n", ErrorCode::kFormat, "padding id -1");

    Tiny types;
    types.data.types.pop_back();
    CHECK_FAILS(create(types.data), ErrorCode::kFormat, "318 token types for 319 tokens");
    Tiny bytes;
    bytes.data.types[encode(*make(bytes.data), "a")[0]] = 5;
    CHECK_FAILS(create(bytes.data), ErrorCode::kFormat, "none for the byte 0x61");
}

TEST(the_file_may_go_after_create) {
    auto tiny = std::make_unique<Tiny>();
    const auto tokenizer = make(tiny->data);
    const Ids before = encode(*tokenizer, "<|im_start|>user\na tree");
    tiny.reset();
    CHECK(encode(*tokenizer, "<|im_start|>user\na tree") == before);
}

TEST(character_classes) {
    CHECK(bonsai::char_class(U'a') == CharClass::kLetter);
    CHECK(bonsai::char_class(U'\u6811') == CharClass::kLetter);
    CHECK(bonsai::char_class(U'\U0010FFFF') == CharClass::kOther);
    CHECK(bonsai::char_class(0) == CharClass::kOther);
    CHECK(bonsai::char_class(U'\u0301') == CharClass::kOther);  // a mark is not a letter
    CHECK(bonsai::char_class(U'\u2167') == CharClass::kNumber); // ROMAN NUMERAL EIGHT
    CHECK(bonsai::char_class(U'\u0085') == CharClass::kSpace);
    CHECK(bonsai::char_class(U'\u180E') == CharClass::kOther); // a space before Unicode 6.3
    CHECK(bonsai::char_class(U'\u001C') == CharClass::kOther); // a space for some, not for \s
}

TEST(normalisation) {
    CHECK(nfc(U"e\u0301") == U"\u00E9");
    CHECK(nfc(U"q\u0307\u0323") == U"q\u0323\u0307"); // marks sorted by class
    CHECK(nfc(U"a\u0323\u0302") == U"\u1EAD");        // composed twice
    CHECK(nfc(U"a\u0302\u0301\u0323") == U"\u1EAD\u0301");
    CHECK(nfc(U"\u0958") == U"\u0915\u093C"); // excluded from composition
    CHECK(nfc(U"\u2126") == U"\u03A9");       // singleton
    CHECK(nfc(U"\u1112\u1161\u11AB") == U"\uD55C");
    CHECK(nfc(U"\uD558\u11AB") == U"\uD55C");
    CHECK(nfc(U"\uD55C\u11AB") == U"\uD55C\u11AB"); // has its final consonant already
    CHECK(nfc(U"\u0301a") == U"\u0301a");
    CHECK(nfc(U"") == U"");
}
