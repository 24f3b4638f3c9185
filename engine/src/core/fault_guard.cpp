// SPDX-License-Identifier: Apache-2.0
#include "core/fault_guard.h"

#ifdef _WIN32

namespace bonsai {

Status FaultGuard::protect(const void*, size_t) {
    return Status();
}

void FaultGuard::release() {}

bool FaultGuard::faulted() const {
    return false;
}

} // namespace bonsai

#else

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <sys/mman.h>

namespace bonsai {

// A place in the list that the handler walks. Places are used again but never freed, since a
// handler may be reading them at any moment; there are as many as ranges ever were guarded at once.
// `version` is odd while the other members change, and readers take only what it held still for.
struct GuardedRange {
    std::atomic<uint32_t> version{0};
    std::atomic<uintptr_t> begin{0}, end{0};
    std::atomic<bool> faulted{false};
    GuardedRange* next = nullptr; // fixed once the place is in the list
};

namespace {

std::mutex guard_mutex; // taken by protect and ~FaultGuard, never by the handler
std::atomic<GuardedRange*> ranges{nullptr};
int guarded = 0;        // ranges in use
bool installed = false; // our handler is in place, or below one that was installed after it
struct sigaction previous;

static_assert(std::atomic<GuardedRange*>::is_always_lock_free &&
                  std::atomic<uintptr_t>::is_always_lock_free,
              "used in a signal handler");

void set_range(GuardedRange* range, uintptr_t begin, uintptr_t end) {
    range->version.fetch_add(1);
    range->begin = begin;
    range->end = end;
    range->faulted = false;
    range->version.fetch_add(1);
}

// Runs in the handler: takes no lock and no memory.
bool cover_range_of(uintptr_t address) {
    for (GuardedRange* range = ranges.load(); range != nullptr; range = range->next) {
        const uint32_t version = range->version.load();
        const uintptr_t begin = range->begin.load(), end = range->end.load();
        if (version % 2 != 0 || version != range->version.load()) continue; // not one in use
        if (address < begin || address >= end) continue;
        void* const at = reinterpret_cast<void*>(begin);
        // Noted first: whoever reads a zero must be able to learn that it is none.
        range->faulted = true;
        return ::mmap(at, end - begin, PROT_READ, MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0) == at;
    }
    return false;
}

// What would have happened without us.
void pass_on(int number, siginfo_t* info, void* context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(number, info, context);
        return;
    }
    const bool sent = info->si_code <= 0; // by a process: the failed read is not tried again
    if (previous.sa_handler == SIG_IGN && sent) return;
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
        return;
    }
    struct sigaction standard = {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(number, &standard, nullptr);
    if (sent) ::raise(number); // else the read happens again, and the default with it
}

void on_sigbus(int number, siginfo_t* info, void* context) {
    const int error = errno;
    if (info->si_code <= 0 || !cover_range_of(reinterpret_cast<uintptr_t>(info->si_addr)))
        pass_on(number, info, context);
    errno = error;
}

bool is_ours(const struct sigaction& action) {
    return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_sigbus;
}

bool wanted() {
    const char* setting = std::getenv("BONSAI_SIGBUS");
    return setting == nullptr || std::strcmp(setting, "off") != 0;
}

// Under guard_mutex.
Status install() {
    if (installed || !wanted()) return Status();
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    // Read first, so that `previous` is whole before the handler can run.
    if (::sigaction(SIGBUS, nullptr, &previous) != 0 || ::sigaction(SIGBUS, &action, nullptr) != 0)
        return fail(ErrorCode::kInternal, "no handler can be installed for SIGBUS: %s",
                    std::strerror(errno));
    installed = true;
    return Status();
}

// Under guard_mutex. A handler installed after ours may pass on to it: then it stays.
void uninstall() {
    struct sigaction now;
    if (!installed || ::sigaction(SIGBUS, nullptr, &now) != 0 || !is_ours(now)) return;
    ::sigaction(SIGBUS, &previous, nullptr);
    installed = false;
}

GuardedRange* free_place() {
    for (GuardedRange* range = ranges.load(); range != nullptr; range = range->next) {
        if (range->begin == range->end) return range;
    }
    auto* const range = new (std::nothrow) GuardedRange;
    if (range == nullptr) return nullptr;
    range->next = ranges.load();
    ranges = range;
    return range;
}

} // namespace

Status FaultGuard::protect(const void* begin, size_t length) {
    const std::lock_guard<std::mutex> lock(guard_mutex);
    BONSAI_TRY(install());
    GuardedRange* const range = free_place();
    if (range == nullptr) {
        if (guarded == 0) uninstall();
        return Status(ErrorCode::kMemory, "out of memory");
    }
    const auto first = reinterpret_cast<uintptr_t>(begin);
    set_range(range, first, first + length);
    range_ = range;
    ++guarded;
    return Status();
}

void FaultGuard::release() {
    if (range_ == nullptr) return;
    const std::lock_guard<std::mutex> lock(guard_mutex);
    set_range(range_, 0, 0);
    range_ = nullptr;
    if (--guarded == 0) uninstall();
}

bool FaultGuard::faulted() const {
    return range_ != nullptr && range_->faulted;
}

} // namespace bonsai

#endif
