// SPDX-License-Identifier: Apache-2.0
#include "signals.h"

#include <atomic>
#include <csignal>
#include <cstdlib>

#include "failure.h"

namespace bonsai::cli {
namespace {

std::atomic<int> signal_number{0};
std::atomic<int> critical{0};
std::atomic<int> idle{0};
std::atomic<bonsai_context*> context{nullptr};
static_assert(std::atomic<bonsai_context*>::is_always_lock_free, "used in a signal handler");

void on_signal(int number) {
#if defined(_WIN32)
    std::signal(number, on_signal); // Windows forgets the handler each time
#endif
    const bool again = signal_number.exchange(number) != 0;
    if ((again || idle.load() != 0) && critical.load() == 0) std::_Exit(kExitSignal + number);
    if (bonsai_context* ctx = context.load()) bonsai_cancel(ctx);
}

} // namespace

void install_signal_handlers() {
#if defined(_WIN32)
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);
#else
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before;
        // What the parent ignores (nohup, a background job) stays ignored.
        if (sigaction(number, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(number, &action, nullptr);
    }
#endif
}

void set_signal_context(bonsai_context* ctx) {
    context.store(ctx);
}

int received_signal() {
    return signal_number.load();
}

void stop_if_signalled() {
    if (const int number = received_signal())
        throw Failure(kExitSignal + number,
                      number == SIGINT ? "interrupted" : "stopped by a signal");
}

CriticalSection::CriticalSection() {
    ++critical;
}
CriticalSection::~CriticalSection() {
    --critical;
}

IdleSection::IdleSection() {
    ++idle;
}
IdleSection::~IdleSection() {
    --idle;
}

} // namespace bonsai::cli
