// SPDX-License-Identifier: Apache-2.0
// The input is a prompt for the tokenizer of tests/data/tokenizer_small. A first byte above 0xf7,
// which no UTF-8 text begins with, asks for the rest 2, 4, ... 256 times, for long prompts.
#include <algorithm>

#include "detokenize.h"
#include "prompt_tokenizer.inc"
#include "support/tokenizer_file.h"

namespace {

struct Fixed {
    std::string file{reinterpret_cast<const char*>(kTokenizer), sizeof kTokenizer};
    bonsai::TokenizerData data = test::parse_tokenizer(&file);
    std::unique_ptr<bonsai::Tokenizer> tokenizer;
    Fixed() {
        const bonsai::Status status = bonsai::Tokenizer::create(data, &tokenizer);
        fuzz::require(status.ok(), "the fixed tokenizer loads", status.message());
    }
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
    static const Fixed fixed;
    std::string_view text(reinterpret_cast<const char*>(bytes), size);
    if (size == 0 || bytes[0] < 0xf8) {
        fuzz::check_encode(*fixed.tokenizer, fixed.data, text);
        return 0;
    }
    text.remove_prefix(1);
    std::string repeated;
    constexpr size_t kLongest = 1 << 15; // bytes; enough for all that depends on length
    for (int left = 2 << (bytes[0] - 0xf8); left > 0 && repeated.size() < kLongest; --left)
        repeated.append(text);
    fuzz::check_encode(*fixed.tokenizer, fixed.data, repeated);
    return 0;
}
