// SPDX-License-Identifier: Apache-2.0
#include "core/work_memory.h"

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bonsai {

namespace {

// Large pages of x86-64, and of ARM with small pages of 4 KB.
constexpr size_t kLargePage = size_t{2} << 20;
// Less would waste most of its last page.
constexpr size_t kLeastLarge = size_t{1} << 20;

std::align_val_t alignment_of(size_t bytes) {
    return std::align_val_t(bytes >= kLeastLarge ? kLargePage : 64);
}

} // namespace

void* allocate_work_memory(size_t bytes) {
    if (bytes >= kLeastLarge && bytes <= SIZE_MAX - kLargePage)
        bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    void* data = ::operator new(bytes, alignment_of(bytes), std::nothrow);
#if defined(__linux__)
    // A hint: what it answers does not matter.
    if (data && bytes >= kLargePage) ::madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
}

void free_work_memory(void* data, size_t bytes) {
    ::operator delete(data, alignment_of(bytes), std::nothrow);
}

} // namespace bonsai
