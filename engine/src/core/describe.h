// SPDX-License-Identifier: Apache-2.0
// What stands in a GGUF file, ours or anybody's, for people (text) and programs (JSON); and the
// check of its tensor hashes.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "core/gguf.h"

namespace bonsai {

// UTF-8 in quotes, as JSON wants it; bytes that are not UTF-8 become U+FFFD, and what lies beyond
// `limit` bytes becomes dots.
std::string quoted(std::string_view text, size_t limit = std::string_view::npos);
// JSON has no word for infinities and NaN: they become null.
std::string number_text(double value, int digits);

std::string describe_text(const GgufFile& file);
std::string describe_json(const GgufFile& file);

// Compares each tensor with bonsai.tensor_sha256; the error names the first that differs. progress
// may return an error to stop.
Status
verify_hashes(const GgufFile& file,
              const std::function<Status(double fraction, std::string_view tensor)>& progress);

} // namespace bonsai
