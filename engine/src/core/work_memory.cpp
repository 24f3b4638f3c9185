// SPDX-License-Identifier: Apache-2.0
#include "core/work_memory.h"

#include <cstdint>
#include <new>

// Address sanitizers watch what operator new gives out.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BONSAI_WATCHED_MEMORY
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define BONSAI_WATCHED_MEMORY
#endif

#if defined(__linux__) && !defined(BONSAI_WATCHED_MEMORY)
#include <sys/mman.h>
#define BONSAI_LARGE_PAGES
#endif

namespace bonsai {

namespace {

constexpr std::align_val_t kAlignment{64};

#if defined(BONSAI_LARGE_PAGES)
// Large pages of x86-64, and of ARM with small pages of 4 KB. Smaller blocks have no use for them.
constexpr size_t kLargePage = size_t{2} << 20;

// Mapped, so that it goes back to the system when it is freed, from a large page's boundary on.
void* map_aligned(size_t bytes) {
    if (bytes > SIZE_MAX - kLargePage) return nullptr;
    void* mapped = ::mmap(nullptr, bytes + kLargePage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    auto* begin = static_cast<uint8_t*>(mapped);
    const size_t before =
        (kLargePage - reinterpret_cast<uintptr_t>(begin) % kLargePage) % kLargePage;
    // What is too much is never touched; giving it back is a courtesy.
    if (before > 0) ::munmap(begin, before);
    ::munmap(begin + before + bytes, kLargePage - before);
    ::madvise(begin + before, bytes, MADV_HUGEPAGE);
    return begin + before;
}

size_t whole_pages(size_t bytes) {
    constexpr size_t kPage = size_t{64} << 10; // the largest small page
    return bytes > SIZE_MAX - kPage ? bytes : (bytes + kPage - 1) / kPage * kPage;
}
#endif

} // namespace

void* allocate_work_memory(size_t bytes) {
#if defined(BONSAI_LARGE_PAGES)
    if (bytes >= kLargePage) return map_aligned(whole_pages(bytes));
#endif
    return ::operator new(bytes, kAlignment, std::nothrow);
}

void free_work_memory(void* data, size_t bytes) {
#if defined(BONSAI_LARGE_PAGES)
    if (bytes >= kLargePage && data) ::munmap(data, whole_pages(bytes));
    if (bytes >= kLargePage) return;
#endif
    (void)bytes;
    ::operator delete(data, kAlignment, std::nothrow);
}

} // namespace bonsai
