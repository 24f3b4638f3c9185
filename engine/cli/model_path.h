// SPDX-License-Identifier: Apache-2.0
// Which model to use when -m is not given.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace bonsai::cli {

struct ModelPath {
    std::string path;
    bool demo = false; // the shipped demo model, taken because no other was there
};

// The running program's file; empty where the system does not tell.
std::filesystem::path program_path();

// `given`, else $BONSAI_MODEL, both a path or hub:owner/name (hub_model.h), else the first *.gguf
// in share/bonsai beside the program's bin folder or where bonsai was installed; the demo model
// comes after all others. Throws Failure(kExitUsage) that says how to get one.
ModelPath find_model(const std::optional<std::string>& given);

} // namespace bonsai::cli
