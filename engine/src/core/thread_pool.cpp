// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <system_error>

namespace bonsai {

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

void ThreadPool::take(int worker) noexcept {
    try {
        for (;;) {
            const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
            if (index >= count_) return;
            (*body_)(index, worker);
        }
    } catch (...) {
        Status status = caught();
        next_.store(count_, std::memory_order_relaxed); // the others stop too
        const std::lock_guard<std::mutex> lock(mutex_);
        if (error_.ok()) error_ = std::move(status);
    }
}

void ThreadPool::worker_main(int worker) {
    uint64_t seen = 0;
    for (;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            start_.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
        }
        take(worker);
        std::lock_guard<std::mutex> lock(mutex_);
        if (--busy_ == 0) done_.notify_one();
    }
}

Status ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t, int)>& body) {
    const bool alone = workers_.empty() || count <= 1;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        body_ = &body;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        error_ = Status();
        if (!alone) {
            busy_ = static_cast<int>(workers_.size());
            ++generation_;
        }
    }
    if (!alone) start_.notify_all();
    take(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
    return std::move(error_);
}

} // namespace bonsai
