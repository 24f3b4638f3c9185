// SPDX-License-Identifier: Apache-2.0
// MappedFile: a whole file, read-only, in the address space. Pages are shared with every process
// that maps the same file.
//
// Others may change the file meanwhile. Reading it through data() never harms (see fault_guard.h),
// but what is read may be anything: bytes whose values matter for safety are fetched with read(),
// and check() tells after a piece of work whether it can be believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/fault_guard.h"
#include "core/status.h"

namespace bonsai {

static_assert(sizeof(size_t) == 8, "files are larger than what 32 bits can address");

class MappedFile {
  public:
    static Status open(const std::string& path, std::unique_ptr<MappedFile>* out);
    // A copy of `size` bytes that behaves like a file without a place on the disk. `name` stands
    // for its path.
    static Status from_memory(const std::string& name, const void* bytes, size_t size,
                              std::unique_ptr<MappedFile>* out);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }

    // Copies bytes that lie within size().
    Status read(uint64_t offset, size_t length, void* out) const;
    // An error if the file has been shortened, written to or lost since it was opened. A file that
    // was deleted or replaced by another of its name stays as it was and usable.
    Status check() const;

  private:
    MappedFile() = default;
    std::string path_;
    const uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
#ifdef _WIN32
    void* mapping_ = nullptr;
#else
    int fd_ = -1;
    int64_t modified_[2] = {0, 0}; // seconds, nanoseconds
#endif
    FaultGuard guard_;
};

// Gives the pages of a mapped range back to the system; the next use reads them again (from its
// cache, if they are still there). A hint: nothing happens where the system has no such call.
void evict_pages(const void* begin, size_t length);

} // namespace bonsai
