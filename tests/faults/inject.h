// SPDX-License-Identifier: Apache-2.0
// Makes calls of the system fail on demand, in the whole program and in the libraries it uses: a
// function that the program defines goes before that of a shared library. Include this in one file
// of a test program. Needs glibc; FAULTS_INJECTABLE tells whether it works here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__linux__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#define FAULTS_INJECTABLE 1

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <new>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

// For what runs before the address sanitizer has set itself up.
#define FAULTS_EARLY __attribute__((no_sanitize("address"), no_sanitize("undefined")))

namespace faults {

// While above zero, no call of this thread is counted or fails.
static __thread int spared = 0;

// Calls of one kind, counted while armed, and which of them fail.
class Fault {
  public:
    // The nth call from now on fails, and with `onwards` all behind it; 0: none, they are counted.
    void arm(int64_t nth, bool onwards = false, int error = 0) {
        calls_ = 0;
        failed_ = 0;
        nth_ = nth;
        onwards_ = onwards;
        error_ = error;
        __atomic_store_n(&armed_, true, __ATOMIC_SEQ_CST);
    }
    // The number of calls since arm().
    int64_t disarm() {
        __atomic_store_n(&armed_, false, __ATOMIC_SEQ_CST);
        return calls_;
    }
    // How many of them failed.
    int64_t failed() const { return failed_; }

    // For the replaced functions: whether this call is to fail, with errno set.
    FAULTS_EARLY bool strikes(int error) {
        return spared == 0 && __atomic_load_n(&armed_, __ATOMIC_RELAXED) && decide(error);
    }

  private:
    bool decide(int error) {
        const int64_t call = ++calls_;
        if (call != nth_ && !(onwards_ && nth_ > 0 && call > nth_)) return false;
        ++failed_;
        errno = error_ != 0 ? error_.load() : error;
        return true;
    }

    bool armed_ = false;
    std::atomic<bool> onwards_{false};
    std::atomic<int64_t> calls_{0}, nth_{0}, failed_{0};
    std::atomic<int> error_{0};
};

inline Fault memory, map, advise, open_file, write_file, sync_file, close_file, rename_file, thread;
// Blocks that are allocated now.
inline int64_t live_count = 0;
FAULTS_EARLY inline void count(int64_t blocks) {
    __atomic_add_fetch(&live_count, blocks, __ATOMIC_RELAXED);
}
inline int64_t live() {
    return __atomic_load_n(&live_count, __ATOMIC_RELAXED);
}

// The function that this program's own hides.
template <typename Function> Function* hidden(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

} // namespace faults

extern "C" {

#if defined(__SANITIZE_ADDRESS__)
#define FAULTS_MALLOC(name) __interceptor_##name
#else
#define FAULTS_MALLOC(name) __libc_##name
#endif
void* FAULTS_MALLOC(malloc)(size_t);
void* FAULTS_MALLOC(calloc)(size_t, size_t);
void* FAULTS_MALLOC(realloc)(void*, size_t);
void* FAULTS_MALLOC(memalign)(size_t, size_t);
void FAULTS_MALLOC(free)(void*);

FAULTS_EARLY void* malloc(size_t size) noexcept {
    if (faults::memory.strikes(ENOMEM)) return nullptr;
    void* out = FAULTS_MALLOC(malloc)(size);
    faults::count(out != nullptr);
    return out;
}
FAULTS_EARLY void* calloc(size_t count, size_t size) noexcept {
    if (faults::memory.strikes(ENOMEM)) return nullptr;
    void* out = FAULTS_MALLOC(calloc)(count, size);
    faults::count(out != nullptr);
    return out;
}
FAULTS_EARLY void* realloc(void* old, size_t size) noexcept {
    if (faults::memory.strikes(ENOMEM)) return nullptr;
    void* out = FAULTS_MALLOC(realloc)(old, size);
    faults::count((out != nullptr) - (old != nullptr && (out != nullptr || size == 0)));
    return out;
}
FAULTS_EARLY void* memalign(size_t alignment, size_t size) noexcept {
    if (faults::memory.strikes(ENOMEM)) return nullptr;
    void* out = FAULTS_MALLOC(memalign)(alignment, size);
    faults::count(out != nullptr);
    return out;
}
FAULTS_EARLY void* aligned_alloc(size_t alignment, size_t size) noexcept {
    return memalign(alignment, size);
}
FAULTS_EARLY int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
    *out = memalign(alignment, size);
    return *out != nullptr ? 0 : ENOMEM;
}
FAULTS_EARLY void free(void* data) noexcept {
    faults::count(-(data != nullptr));
    FAULTS_MALLOC(free)(data);
}

FAULTS_EARLY void* mmap(void* address, size_t size, int protection, int flags, int fd,
                        off_t offset) noexcept {
    if (fd >= 0 && faults::map.strikes(ENOMEM)) return MAP_FAILED;
    static auto* const next = faults::hidden<decltype(mmap)>("mmap");
    return next(address, size, protection, flags, fd, offset);
}
FAULTS_EARLY int madvise(void* address, size_t size, int advice) noexcept {
    if (faults::advise.strikes(EINVAL)) return -1;
    static auto* const next = faults::hidden<int(void*, size_t, int)>("madvise");
    return next(address, size, advice);
}
FAULTS_EARLY int open(const char* path, int flags, ...) {
    if (faults::open_file.strikes(EMFILE)) return -1;
    va_list args;
    va_start(args, flags);
    const unsigned mode = (flags & O_CREAT) != 0 ? va_arg(args, unsigned) : 0;
    va_end(args);
    static auto* const next = faults::hidden<int(const char*, int, ...)>("open");
    return next(path, flags, mode);
}
FAULTS_EARLY ssize_t write(int fd, const void* data, size_t size) {
    if (faults::write_file.strikes(ENOSPC)) return -1;
    static auto* const next = faults::hidden<decltype(write)>("write");
    return next(fd, data, size);
}
FAULTS_EARLY int fsync(int fd) {
    if (faults::sync_file.strikes(EIO)) return -1;
    static auto* const next = faults::hidden<decltype(fsync)>("fsync");
    return next(fd);
}
FAULTS_EARLY int close(int fd) {
    static auto* const next = faults::hidden<decltype(close)>("close");
    const int result = next(fd); // closed even then, as Linux does
    return faults::close_file.strikes(EIO) ? -1 : result;
}
FAULTS_EARLY int rename(const char* from, const char* to) noexcept {
    if (faults::rename_file.strikes(EACCES)) return -1;
    static auto* const next = faults::hidden<int(const char*, const char*)>("rename");
    return next(from, to);
}
FAULTS_EARLY int pthread_create(pthread_t* out, const pthread_attr_t* attributes,
                                void* (*body)(void*), void* argument) noexcept {
    if (faults::thread.strikes(EAGAIN)) return EAGAIN;
    static auto* const next =
        faults::hidden<int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>(
            "pthread_create");
    return next(out, attributes, body, argument);
}

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer asks so for the stack of each new thread, and ends the program if that fails.
FAULTS_EARLY int pthread_getattr_np(pthread_t which, pthread_attr_t* out) noexcept {
    ++faults::spared;
    const int result =
        faults::hidden<int(pthread_t, pthread_attr_t*)>("pthread_getattr_np")(which, out);
    --faults::spared;
    return result;
}
#endif

} // extern "C"

// The C++ forms, in terms of the above: a sanitizer would otherwise bring its own.
FAULTS_EARLY void* operator new(size_t size) {
    if (void* out = malloc(size)) return out;
    throw std::bad_alloc();
}
FAULTS_EARLY void* operator new(size_t size, std::align_val_t alignment) {
    if (void* out = memalign(static_cast<size_t>(alignment), size)) return out;
    throw std::bad_alloc();
}
FAULTS_EARLY void* operator new(size_t size, const std::nothrow_t&) noexcept {
    return malloc(size);
}
FAULTS_EARLY void* operator new(size_t size, std::align_val_t alignment,
                                const std::nothrow_t&) noexcept {
    return memalign(static_cast<size_t>(alignment), size);
}
FAULTS_EARLY void* operator new[](size_t size) {
    return operator new(size);
}
FAULTS_EARLY void operator delete(void* data) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete(void* data, size_t) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete(void* data, std::align_val_t) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete(void* data, size_t, std::align_val_t) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete(void* data, const std::nothrow_t&) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete(void* data, std::align_val_t, const std::nothrow_t&) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete[](void* data) noexcept {
    free(data);
}
FAULTS_EARLY void operator delete[](void* data, size_t) noexcept {
    free(data);
}

#endif
