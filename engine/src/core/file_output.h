// SPDX-License-Identifier: Apache-2.0
// Writing a file so that nobody ever sees half of it.
#pragma once

#include <cstddef>
#include <string>

#include "core/status.h"

namespace bonsai {

// Writes a temporary file in the folder of path, syncs it and renames it to path: path is either
// complete or untouched, and the temporary file is removed on failure. A symbolic link is followed;
// a device or pipe is written directly.
Status write_file(const std::string& path, const void* data, size_t size);

} // namespace bonsai
