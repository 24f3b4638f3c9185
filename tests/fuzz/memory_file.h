// SPDX-License-Identifier: Apache-2.0
// Hands the bytes of a fuzz input to code that opens files by path, without a disk.
//
// The fuzz targets link with --wrap=mmap (and munmap, madvise): where the engine maps a file it
// gets a heap block of exactly the file's size instead, so that the address sanitizer sees a read
// of one byte too many, which in a real mapping falls into the rest of the last page. Use after the
// file is closed shows as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fuzz {

// A path under which these bytes can be opened until the next call.
std::string memory_file(const uint8_t* data, size_t size);

} // namespace fuzz
