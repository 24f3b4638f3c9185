// SPDX-License-Identifier: Apache-2.0
// --from: the settings a picture was drawn with.
#pragma once

#include <map>
#include <string>

#include "options.h"

namespace bonsai::cli {

// The "key: value" lines with their escapes (\\, \n, \r) undone.
std::map<std::string, std::string> parse_metadata(const std::string& text);

// Fills what the command line left open in `options` from the metadata of the picture options.from.
// Returns the metadata, for comparing the model.
std::map<std::string, std::string> apply_metadata(Options& options);

} // namespace bonsai::cli
