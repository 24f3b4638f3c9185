// SPDX-License-Identifier: Apache-2.0
// The instruction sets of this processor, and the kernel level that follows from them.
#pragma once

#include "backends/cpu/table.h"
#include "core/status.h"

namespace bonsai::cpu {

// The best level that processor and operating system support.
Level detected_level();

const char* level_name(Level level);

// detected_level(), or what the environment variable BONSAI_CPU asks for; asking for more than
// there is is an error.
Status chosen_level(Level* out);

} // namespace bonsai::cpu
