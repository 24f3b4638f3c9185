// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <thread>

#include "test.h"

using namespace bonsai;

TEST(every_index_runs_once) {
    for (const int threads : {1, 2, 7}) {
        std::unique_ptr<ThreadPool> pool;
        CHECK_OK(ThreadPool::create(threads, true, &pool));
        CHECK(pool->size() == threads);
        for (const int64_t count : {0, 1, 2, 3, 100, 10000}) {
            std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
            std::atomic<bool> worker_in_range{true};
            CHECK_OK(pool->parallel_for(count, [&](int64_t i, int worker) {
                ++seen[static_cast<size_t>(i)];
                if (worker < 0 || worker >= threads) worker_in_range = false;
            }));
            CHECK(worker_in_range);
            for (const auto& times : seen)
                CHECK(times == 1);
        }
    }
}

TEST(loops_follow_each_other_quickly) {
    std::unique_ptr<ThreadPool> pool;
    CHECK_OK(ThreadPool::create(3, true, &pool));
    std::atomic<int64_t> sum{0};
    for (int round = 0; round < 5000; ++round)
        CHECK_OK(pool->parallel_for(4, [&](int64_t i, int) { sum += i; }));
    CHECK(sum == 5000 * 6);
}

// Workers that sleep, that come when a loop is over, or that are more than the processors.
TEST(no_index_is_lost_when_workers_come_late) {
    std::unique_ptr<ThreadPool> pool;
    CHECK_OK(ThreadPool::create(24, true, &pool));
    for (int round = 0; round < 300; ++round) {
        const int64_t count = 1 + round % 30;
        std::vector<int> seen(static_cast<size_t>(count)); // not atomic: the loop's end orders it
        CHECK_OK(pool->parallel_for(count, [&](int64_t i, int) {
            ++seen[static_cast<size_t>(i)];
            if (i % 7 == 3) std::this_thread::sleep_for(std::chrono::microseconds(100));
        }));
        CHECK(std::count(seen.begin(), seen.end(), 1) == count);
        if (round % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
}

TEST(what_a_body_throws_is_the_error_of_the_loop) {
    for (const int threads : {1, 2, 7}) {
        std::unique_ptr<ThreadPool> pool;
        CHECK_OK(ThreadPool::create(threads, true, &pool));
        for (int64_t bad = 0; bad < 40; ++bad) {
            const auto throws = [&](int64_t i, int) {
                if (i != bad) return;
                if (bad % 3 == 0) throw std::bad_alloc();
                if (bad % 3 == 1) throw std::runtime_error("index " + std::to_string(i));
                throw 7;
            };
            const Status status = pool->parallel_for(40, throws);
            if (bad % 3 == 0) CHECK_FAILS(status, ErrorCode::kMemory, "out of memory");
            if (bad % 3 == 1)
                CHECK_FAILS(status, ErrorCode::kInternal,
                            ("unexpected: index " + std::to_string(bad)).c_str());
            if (bad % 3 == 2) CHECK_FAILS(status, ErrorCode::kInternal, "unexpected");
            std::atomic<int> ran{0};
            CHECK_OK(pool->parallel_for(40, [&](int64_t, int) { ++ran; }));
            CHECK(ran == 40); // nothing is left over of the loop before
        }
        CHECK_FAILS(pool->parallel_for(1000, [](int64_t, int) { throw std::bad_alloc(); }),
                    ErrorCode::kMemory, "out of memory"); // everywhere at once
    }
}

TEST(a_flag_stops_loops_between_indices) {
    for (const int threads : {1, 3}) {
        std::unique_ptr<ThreadPool> pool;
        CHECK_OK(ThreadPool::create(threads, true, &pool));
        std::atomic<bool> stop{false};
        pool->stop_when(&stop);
        std::atomic<int> ran{0};
        const auto stops = [&](int64_t i, int) {
            ++ran;
            if (i == 5) stop = true;
        };
        CHECK_FAILS(pool->parallel_for(1000000, stops), ErrorCode::kCancelled, "cancelled");
        CHECK(ran >= 6 && ran < 1000000);
        CHECK_FAILS(pool->parallel_for(1, stops), ErrorCode::kCancelled, "cancelled");
        stop = false;
        ran = 0;
        CHECK_OK(pool->parallel_for(5, stops));
        CHECK(ran == 5);
    }
}

TEST(default_count_is_sane) {
    CHECK(default_thread_count() >= 1 && default_thread_count() <= 4096);
}
