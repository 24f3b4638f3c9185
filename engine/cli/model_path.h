// SPDX-License-Identifier: Apache-2.0
// Which model to use when -m is not given.
#pragma once

#include <optional>
#include <string>

namespace bonsai::cli {

// `given`, else $BONSAI_MODEL, else the first *.gguf in share/bonsai beside the program's bin
// folder or where bonsai was installed. Throws Failure(kExitUsage) that says how to get one.
std::string find_model(const std::optional<std::string>& given);

} // namespace bonsai::cli
