// SPDX-License-Identifier: Apache-2.0
// The Qwen2/Qwen3 tokenizer: text to ids exactly as the `tokenizers` library does it. Steps: added
// tokens are cut out, the rest is normalised to form C, split by the Qwen regex, and each piece
// merged by byte-level BPE.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/added_tokens.h"
#include "model/bpe.h"

namespace bonsai {

class GgufFile;

// As in the model file. The views are needed during Tokenizer::create only.
struct TokenizerData {
    std::vector<std::string_view>
        tokens;                 // byte-level alphabet for normal tokens, literal for added ones
    std::vector<int32_t> types; // 1 normal, 3 control, 4 user-defined, 5 unused
    std::vector<std::string_view> merges; // "a b" in rank order
    int32_t pad_id = 0;
};

class Tokenizer {
  public:
    // Longer texts are refused.
    static constexpr size_t kMaxTextBytes = size_t{1} << 20;
    // Added tokens, which are looked for everywhere in a text; those in use are some hundred of
    // some 20 bytes.
    static constexpr size_t kMaxAdded = 4096, kMaxAddedBytes = 256;

    // Checks every entry; the message names the bad one.
    static Status create(const TokenizerData& data, std::unique_ptr<Tokenizer>* out);

    // Whether encode takes the text: its length and its UTF-8.
    static Status check_text(std::string_view text);

    // UTF-8 text to ids. Invalid UTF-8 is an error that gives the byte offset.
    Status encode(std::string_view text, std::vector<int32_t>* ids) const;

    // encode, cut on the right to max_tokens, padded on the right with the pad id to max_tokens.
    // *real is the number of ids that are not padding, *truncated whether any were cut.
    Status encode_padded(std::string_view text, int32_t max_tokens, std::vector<int32_t>* ids,
                         int32_t* real, bool* truncated) const;

    int32_t vocab_size() const { return vocab_size_; }

  private:
    struct Scratch;

    Tokenizer() = default;
    Status init(const TokenizerData& data);
    Status add_token(std::string_view text, int32_t id);
    void encode_plain(std::string_view text, Scratch* scratch, std::vector<int32_t>* ids) const;

    int32_t vocab_size_ = 0;
    int32_t pad_id_ = 0;
    Bpe bpe_;
    AddedTokens added_;
};

// The tokenizer that stands in the keys tokenizer.ggml.* of a model file.
Status load_tokenizer(const GgufFile& file, std::unique_ptr<Tokenizer>* out);

} // namespace bonsai
