// SPDX-License-Identifier: Apache-2.0
// Small text helpers of the command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bonsai::cli {

// The candidate nearest to word, or empty when none is near enough to be a slip.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

// ", did you mean X?" or nothing.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// "1.25 GB" (decimal units, as file managers show).
std::string format_bytes(uint64_t bytes);

// "0:07", "12:30", "1:02:03".
std::string format_clock(double seconds);

// "12.3 s", "0.45 s".
std::string format_seconds(double seconds);

// text as a JSON string with quotes; bytes that are no valid UTF-8 become U+FFFD.
std::string json_string(const std::string& text);

// text for a terminal: control characters and bytes that are no valid UTF-8 become question marks.
std::string one_line(const std::string& text);

// Words of a prompt as part of a file name: at most 48 bytes, "untitled" when nothing is left.
std::string slug(const std::string& prompt);

} // namespace bonsai::cli
