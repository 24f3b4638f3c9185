// SPDX-License-Identifier: Apache-2.0
// Memory for activations and what kernels work with: large blocks on large pages where the system
// has some to give. Rows of activations lie far apart, a page or more, so that small pages cost an
// address translation a row, and faults for each 4 KB when they are first written.
#pragma once

#include <cstddef>

namespace bonsai {

// At least 64-byte aligned; null when memory ran out.
void* allocate_work_memory(size_t bytes);
// `bytes` as they were asked for; data may be null.
void free_work_memory(void* data, size_t bytes);

} // namespace bonsai
