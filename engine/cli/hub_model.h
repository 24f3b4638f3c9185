// SPDX-License-Identifier: Apache-2.0
// Models named hub:owner/name[@revision]: files in the user's cache that the converter fetches and
// makes; convert/bonsai_convert/cache.py has the same places.
#pragma once

#include <string>

namespace bonsai::cli {

bool is_hub_name(const std::string& model);

// The model's file. Runs bonsai-convert when it is not there yet; throws Failure when that is not
// installed or fails.
std::string hub_model(const std::string& name);

} // namespace bonsai::cli
