// SPDX-License-Identifier: Apache-2.0
// What the operating system says about memory and processors. 0 means "cannot be known here".
#pragma once

#include <cstdint>
#include <string>

namespace bonsai {

struct MemoryInfo {
    uint64_t total = 0;
    uint64_t available = 0; // without swapping, within the cgroup's limit
};
MemoryInfo system_memory();

uint64_t resident_bytes(); // of this process, now

std::string cpu_name();

} // namespace bonsai
