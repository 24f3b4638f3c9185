// SPDX-License-Identifier: Apache-2.0
#include "memory_file.h"

#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace fuzz {
namespace {

constexpr size_t kPage = 4096;

// What stands in for mappings: address and bytes.
struct Copies {
    std::mutex mutex;
    std::map<const char*, size_t> all;
};
Copies& copies() {
    static Copies* instance = new Copies; // never destroyed: threads may outlive static objects
    return *instance;
}

bool is_copy(const void* address) {
    Copies& c = copies();
    const std::lock_guard<std::mutex> lock(c.mutex);
    const char* at = static_cast<const char*>(address);
    const auto after = c.all.upper_bound(at);
    return after != c.all.begin() && at < std::prev(after)->first + std::prev(after)->second;
}

void* copy_of_file(size_t length, int fd) {
    void* copy = nullptr;
    if (posix_memalign(&copy, kPage, length) != 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    for (size_t done = 0; done < length;) {
        const ssize_t n =
            pread(fd, static_cast<char*>(copy) + done, length - done, static_cast<off_t>(done));
        if (n <= 0) std::abort(); // the file is in memory
        done += static_cast<size_t>(n);
    }
    Copies& c = copies();
    const std::lock_guard<std::mutex> lock(c.mutex);
    c.all[static_cast<const char*>(copy)] = length;
    return copy;
}

} // namespace

std::string memory_file(const uint8_t* data, size_t size) {
    static const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    static const std::string path = "/proc/self/fd/" + std::to_string(fd);
    if (fd < 0 || ftruncate(fd, 0) != 0) std::abort();
    for (size_t done = 0; done < size;) {
        const ssize_t n = pwrite(fd, data + done, size - done, static_cast<off_t>(done));
        if (n <= 0) std::abort();
        done += static_cast<size_t>(n);
    }
    return path;
}

} // namespace fuzz

extern "C" {

void* __real_mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void* address, size_t length);
int __real_madvise(void* address, size_t length, int advice);

void* __wrap_mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void* address, size_t length);
int __wrap_madvise(void* address, size_t length, int advice);

void* __wrap_mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (fd < 0 || (flags & MAP_FIXED) != 0)
        return __real_mmap(address, length, protection, flags, fd, offset);
    return fuzz::copy_of_file(length, fd);
}

int __wrap_munmap(void* address, size_t length) {
    {
        fuzz::Copies& c = fuzz::copies();
        const std::lock_guard<std::mutex> lock(c.mutex);
        if (c.all.erase(static_cast<const char*>(address)) == 0)
            return __real_munmap(address, length);
    }
    std::free(address);
    return 0;
}

// Pages given back are read again from a file; those of a heap block would be zeros.
int __wrap_madvise(void* address, size_t length, int advice) {
    return fuzz::is_copy(address) ? 0 : __real_madvise(address, length, advice);
}

} // extern "C"
