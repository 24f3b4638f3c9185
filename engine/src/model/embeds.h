// SPDX-License-Identifier: Apache-2.0
// Encoded prompts as files: GGUF, so that one reader checks them and `bonsai-cli info` and `verify`
// know them. One tensor, prompt_embeds, f32 [max_tokens, prompt_width], with its SHA-256; keys:
//
//   general.architecture         "bonsai-embeds"
//   bonsai.embeds.version        1
//   bonsai.embeds.model_hash     of the model whose encoder made them
//   bonsai.embeds.prompt         the text
//   bonsai.embeds.tokens         real ones, template included
//   bonsai.embeds.truncated      whether the prompt was cut
#pragma once

#include <string>
#include <vector>

#include "core/raw_vector.h"
#include "core/status.h"

namespace bonsai {

// A prompt and what the transformer is conditioned on.
struct Prompt {
    std::string text;
    RawVector<float> rows; // [max_tokens, prompt_width]
    int32_t tokens = 0;    // real ones
    bool truncated = false;
};

// The model that the rows belong to.
struct EmbedsShape {
    std::string model_hash;
    int64_t tokens = 0; // max_tokens
    int64_t width = 0;  // prompt_width
};

Status write_embeds(const std::string& path, const EmbedsShape& shape, const Prompt& prompt);
// Refuses files of another model, of other sizes, damaged ones and those that hold something else.
Status read_embeds(const std::string& path, const EmbedsShape& shape, Prompt* out);

} // namespace bonsai
