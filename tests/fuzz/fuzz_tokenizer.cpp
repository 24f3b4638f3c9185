// SPDX-License-Identifier: Apache-2.0
// The input describes a tokenizer, line by line; it is put into a GGUF file, loaded from there and
// used. Lines are easier to mutate than the nested lengths of GGUF, which fuzz_gguf covers.
//
//   t TYPE TOKEN     a token: its type as a number, its text
//   m LEFT RIGHT     a merge
//   p ID             the padding id
//   e TEXT           a text to encode
//   x                leave out the 256 byte tokens that otherwise stand first
//
// \xNN stands for any byte.
#include <cstdlib>
#include <cstring>

#include "core/gguf.h"
#include "detokenize.h"
#include "memory_file.h"
#include "support/gguf_builder.h"
#include "support/tokenizer_file.h"

namespace {

struct Input {
    std::vector<std::string> tokens, merges, texts;
    std::vector<uint32_t> types;
    uint32_t pad_id = 0;
};

Input parse(std::string text) {
    Input in;
    if (text.compare(0, 1, "x") != 0) {
        in.tokens = fuzz::byte_alphabet();
        in.types.assign(in.tokens.size(), 1);
    }
    for (size_t at = 0, end = 0; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        if (end - at < 2) continue;
        const char kind = text[at];
        std::string_view rest = test::unescape(&text[at + 2], end - at - 2);
        if (kind == 'm') in.merges.emplace_back(rest);
        if (kind == 'e') in.texts.emplace_back(rest);
        if (kind != 't' && kind != 'p') continue;
        const std::string word(rest.substr(0, rest.find(' ')));
        const auto number = static_cast<uint32_t>(std::strtoul(word.c_str(), nullptr, 10));
        if (kind == 'p') in.pad_id = number;
        if (kind == 'p') continue;
        in.types.push_back(number);
        in.tokens.emplace_back(rest.substr(std::min(word.size() + 1, rest.size())));
    }
    return in;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
    const Input in = parse(std::string(reinterpret_cast<const char*>(bytes), size));
    test::GgufBuilder builder;
    builder.text_array("tokenizer.ggml.tokens", in.tokens);
    builder.u32_array("tokenizer.ggml.token_type", in.types);
    builder.text_array("tokenizer.ggml.merges", in.merges);
    builder.u32("tokenizer.ggml.padding_token_id", in.pad_id);
    const std::string file = builder.bytes();
    std::unique_ptr<bonsai::GgufFile> gguf;
    bonsai::Status status = bonsai::GgufFile::open(
        fuzz::memory_file(reinterpret_cast<const uint8_t*>(file.data()), file.size()), &gguf);
    fuzz::require(status.ok(), "a well-formed file opens", status.message());
    std::unique_ptr<bonsai::Tokenizer> tokenizer;
    status = bonsai::load_tokenizer(*gguf, &tokenizer);
    if (!status.ok()) {
        fuzz::require_clean(status.message(), false);
        return 0;
    }
    bonsai::TokenizerData data;
    data.tokens.assign(in.tokens.begin(), in.tokens.end());
    data.types.assign(in.types.begin(), in.types.end());
    data.pad_id = static_cast<int32_t>(in.pad_id);
    gguf.reset(); // the tokenizer keeps nothing of the file
    for (const std::string& text : in.texts)
        fuzz::check_encode(*tokenizer, data, text);
    return 0;
}
