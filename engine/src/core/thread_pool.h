// SPDX-License-Identifier: Apache-2.0
// ThreadPool: workers that take the indices of one loop at a time from a shared counter. The
// calling thread works too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/status.h"

namespace bonsai {

class ThreadPool {
  public:
    // Starts threads - 1 workers. Where the system refuses some, the pool is smaller, or with
    // `exactly` there is an error and no pool.
    static Status create(int threads, bool exactly, std::unique_ptr<ThreadPool>* out);
    ~ThreadPool();

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Runs body(index, worker) for every index in [0, count), worker in [0, size()). Returns when
    // all are done. What a body throws becomes the error; bodies that have not begun by then may be
    // left out. The body must not call parallel_for. Not for use by two threads at once.
    Status parallel_for(int64_t count, const std::function<void(int64_t index, int worker)>& body);

    // While the flag is set, loops end with kCancelled before all indices are taken.
    void stop_when(const std::atomic<bool>* cancelled) { cancelled_ = cancelled; }

  private:
    // Of state_: the number of the loop, whether it takes more workers, and how many it has.
    static constexpr uint64_t kLoop = uint64_t{1} << 32, kOpen = uint64_t{1} << 31;

    ThreadPool() = default;
    void worker_main(int worker);
    bool begun(uint64_t seen) const; // a loop after `seen` is open, or the pool ends
    bool join(uint64_t* seen);
    void leave();
    void take(int worker) noexcept;
    Status take_indices(int worker);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable start_;
    std::condition_variable done_;
    std::atomic<uint64_t> state_{0};
    std::atomic<bool> stop_{false};
    int asleep_ = 0;
    std::atomic<int64_t> next_{0};
    const std::atomic<bool>* cancelled_ = nullptr;
    // Of the open loop.
    int64_t count_ = 0;
    const std::function<void(int64_t, int)>* body_ = nullptr;
    Status error_; // the first
};

// Physical cores that the affinity mask and the cgroup quota leave to this process; at least 1.
int default_thread_count();

} // namespace bonsai
