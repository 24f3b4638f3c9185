// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <atomic>

#include "test.h"

using namespace bonsai;

TEST(every_index_runs_once) {
    for (const int threads : {1, 2, 7}) {
        std::unique_ptr<ThreadPool> pool;
        CHECK_OK(ThreadPool::create(threads, &pool));
        CHECK(pool->size() == threads);
        for (const int64_t count : {0, 1, 2, 3, 100, 10000}) {
            std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
            std::atomic<bool> worker_in_range{true};
            pool->parallel_for(count, [&](int64_t i, int worker) {
                ++seen[static_cast<size_t>(i)];
                if (worker < 0 || worker >= threads) worker_in_range = false;
            });
            CHECK(worker_in_range);
            for (const auto& times : seen)
                CHECK(times == 1);
        }
    }
}

TEST(loops_follow_each_other_quickly) {
    std::unique_ptr<ThreadPool> pool;
    CHECK_OK(ThreadPool::create(3, &pool));
    std::atomic<int64_t> sum{0};
    for (int round = 0; round < 5000; ++round)
        pool->parallel_for(4, [&](int64_t i, int) { sum += i; });
    CHECK(sum == 5000 * 6);
}

TEST(default_count_is_sane) {
    CHECK(default_thread_count() >= 1 && default_thread_count() <= 4096);
}
