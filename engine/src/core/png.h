// SPDX-License-Identifier: Apache-2.0
// PNG as far as the engine needs it: write an RGB8 picture with its metadata, read that metadata
// back from any PNG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace bonsai {

// The keyword of the text chunk (iTXt, UTF-8) that holds the metadata lines.
constexpr char kPngKeyword[] = "bonsai";

// rgb is [height, width, 3]. An empty metadata writes no text chunk. Compressed with zlib where the
// build has it, else stored.
Status encode_png(const uint8_t* rgb, int32_t width, int32_t height, const std::string& metadata,
                  std::vector<uint8_t>* png);

// Bytes of a text chunk. The longest prompt that the tokenizer takes, 1 MB, fits with every byte
// escaped: what can be drawn can be saved.
constexpr uint32_t kPngTextLimit = 1u << 22;

// The text under kPngKeyword, as UTF-8 without NUL. Reads chunk by chunk and never more than
// kPngTextLimit at once, so a damaged or hostile file costs an error, not memory.
Status read_png_metadata(const std::string& path, std::string* metadata);

// One metadata line: "key: value\n", with backslash, newline and carriage return in value written
// as \\, \n and \r.
std::string metadata_line(const std::string& key, const std::string& value);

} // namespace bonsai
