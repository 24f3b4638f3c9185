// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <chrono>
#include <system_error>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bonsai {

namespace {

// How long a thread looks for the next loop, or for the end of this one, before it sleeps. The ops
// of a step follow each other within some microseconds; waking a thread takes tens.
constexpr std::chrono::microseconds kPatience(50);

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("yield");
#else
    std::this_thread::yield();
#endif
}

template <typename Condition> bool soon(const Condition& holds) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    do {
        for (int i = 0; i < 16; ++i) {
            if (holds()) return true;
            pause();
        }
        std::this_thread::yield(); // who is waited for may want this processor
    } while (std::chrono::steady_clock::now() < end);
    return holds();
}

} // namespace

Status ThreadPool::create(int threads, bool exactly, std::unique_ptr<ThreadPool>* out) {
    std::unique_ptr<ThreadPool> pool(new ThreadPool);
    try {
        for (int worker = 1; worker < threads; ++worker)
            pool->workers_.emplace_back(&ThreadPool::worker_main, pool.get(), worker);
    } catch (const std::system_error& error) {
        if (exactly)
            return fail(ErrorCode::kMemory, "cannot start thread %d of %d: %s; try fewer threads",
                        static_cast<int>(pool->workers_.size()) + 2, threads, error.what());
    }
    *out = std::move(pool);
    return Status();
}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    start_.notify_all();
    for (std::thread& worker : workers_)
        worker.join();
}

Status ThreadPool::take_indices(int worker) {
    for (;;) {
        const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
        if (index >= count_) return Status();
        if (cancelled_ && cancelled_->load(std::memory_order_relaxed))
            return fail(ErrorCode::kCancelled, "cancelled");
        (*body_)(index, worker);
    }
}

void ThreadPool::take(int worker) noexcept {
    Status status;
    try {
        status = take_indices(worker);
    } catch (...) {
        status = caught();
    }
    if (status.ok()) return;
    next_.store(count_, std::memory_order_relaxed); // the others stop too
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_.ok()) error_ = std::move(status);
}

bool ThreadPool::begun(uint64_t seen) const {
    const uint64_t state = state_.load(std::memory_order_relaxed);
    return ((state & kOpen) != 0 && state / kLoop != seen) || stop_.load(std::memory_order_relaxed);
}

// False if the loop has closed meanwhile. The loop stays what it is until who has joined leaves.
bool ThreadPool::join(uint64_t* seen) {
    uint64_t state = state_.load(std::memory_order_relaxed);
    do {
        if ((state & kOpen) == 0 || state / kLoop == *seen) return false;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire,
                                           std::memory_order_relaxed));
    *seen = state / kLoop;
    return true;
}

void ThreadPool::leave() {
    const uint64_t state = state_.fetch_sub(1, std::memory_order_release) - 1;
    if (state % kLoop != 0) return; // still open, or others are in it
    // Not between the caller's look at the state and its sleep.
    const std::lock_guard<std::mutex> lock(mutex_);
    done_.notify_one();
}

void ThreadPool::worker_main(int worker) {
    uint64_t seen = 0;
    for (;;) {
        if (!soon([&] { return begun(seen); })) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            start_.wait(lock, [&] { return begun(seen); });
            --asleep_;
        }
        if (stop_) return;
        if (!join(&seen)) continue;
        take(worker);
        leave();
    }
}

Status ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t, int)>& body) {
    body_ = &body;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    error_ = Status();
    if (workers_.empty() || count <= 1) {
        take(0);
        return std::move(error_);
    }
    bool wake = false;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const uint64_t loop = state_.load(std::memory_order_relaxed) / kLoop + 1;
        state_.store(loop * kLoop + kOpen, std::memory_order_release);
        wake = asleep_ > 0;
    }
    if (wake) start_.notify_all();
    take(0);
    // All indices are taken. Workers that have not come yet are not waited for.
    state_.fetch_and(~kOpen, std::memory_order_acquire);
    const auto empty = [&] { return state_.load(std::memory_order_acquire) % kLoop == 0; };
    if (!soon(empty)) {
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, empty);
    }
    return std::move(error_);
}

} // namespace bonsai
