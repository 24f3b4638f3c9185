// SPDX-License-Identifier: Apache-2.0
// Many threads, many contexts, and contexts that are cancelled and closed at the worst moment.
#include "bonsai.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "support/tiny_model.h"
#include "test.h"

static const char* model_path() {
    static const test::TempFile file(test::TinyModel().file().bytes());
    return file.path().c_str();
}

static bonsai_context* open_model(int32_t threads) {
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = threads;
    bonsai_context* ctx = nullptr;
    if (bonsai_open(model_path(), &params, &ctx) != BONSAI_OK)
        test::failed(__FILE__, __LINE__, bonsai_last_error());
    return ctx;
}

static bonsai_generate_params request(uint64_t seed, int32_t steps = 1) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = "a tree";
    params.width = params.height = 16;
    params.steps = steps;
    params.seed = seed;
    return params;
}

static bonsai_status draw(bonsai_context* ctx, const bonsai_generate_params& params,
                          std::string* rgb) {
    bonsai_image image;
    const bonsai_status status = bonsai_generate(ctx, &params, &image);
    rgb->assign(reinterpret_cast<char*>(image.rgb), image.rgb ? 16 * 16 * 3 : 0);
    bonsai_image_free(&image);
    return status;
}

TEST(eight_threads_share_one_model) {
    bonsai_context* const shared = open_model(2);
    std::vector<std::string> expected(8);
    for (uint64_t seed = 0; seed < 8; ++seed)
        CHECK(draw(shared, request(seed), &expected[seed]) == BONSAI_OK);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 8; ++i)
        threads.emplace_back([&, i] {
            // Half of them with a context of their own over the same file.
            bonsai_context* const ctx = i % 2 == 0 ? shared : open_model(1 + i % 3);
            std::vector<float> rows(24 * 128);
            int32_t ids[4], count = 0;
            bonsai_memory_plan plan;
            plan.struct_size = sizeof plan;
            std::string rgb;
            for (uint64_t round = 0; round < 3; ++round) {
                const uint64_t seed = (i + round) % 8;
                wrong += draw(ctx, request(seed), &rgb) != BONSAI_OK || rgb != expected[seed];
                wrong += bonsai_prompt_encode(ctx, "b", rows.data(), rows.size()) != BONSAI_OK;
                wrong += bonsai_prompt_tokenize(ctx, "b", ids, 4, &count) != BONSAI_OK;
                wrong += bonsai_plan_memory(ctx, 64, 64, &plan) != BONSAI_OK;
                bonsai_generate_params bad = request(0);
                bad.width = static_cast<int32_t>(1000 + i); // each thread has its own message
                wrong += draw(ctx, bad, &rgb) != BONSAI_ERR_ARGUMENT ||
                         !std::strstr(bonsai_last_error(), std::to_string(bad.width).c_str());
            }
            if (ctx != shared) bonsai_close(ctx);
        });
    for (std::thread& thread : threads)
        thread.join();
    CHECK(wrong == 0);
    bonsai_close(shared);
}

// Calls back into the context from its own callback are refused and change nothing.
TEST(a_callback_may_not_call_back) {
    struct Seen {
        bonsai_context* ctx;
        int calls = 0, refused = 0, explained = 0;
    } seen{open_model(2)};
    std::string expected, rgb;
    CHECK(draw(seen.ctx, request(1), &expected) == BONSAI_OK);
    bonsai_generate_params params = request(1);
    params.user = &seen;
    params.on_step = [](const bonsai_step*, void* user) -> int32_t {
        Seen& s = *static_cast<Seen*>(user);
        std::string nested;
        std::vector<float> rows(24 * 128);
        for (const bonsai_status status :
             {draw(s.ctx, request(2), &nested),
              bonsai_prompt_encode(s.ctx, "b", rows.data(), rows.size())}) {
            ++s.calls;
            s.refused += status == BONSAI_ERR_ARGUMENT;
            s.explained += std::strstr(bonsai_last_error(), "callback must not") != nullptr;
        }
        return 0;
    };
    CHECK(draw(seen.ctx, params, &rgb) == BONSAI_OK && rgb == expected);
    CHECK(seen.calls == 2 && seen.refused == 2 && seen.explained == 2);
    // Another context is another matter.
    bonsai_context* const other = open_model(1);
    struct Pair {
        bonsai_context* other;
        std::string rgb;
    } pair{other, ""};
    params.user = &pair;
    params.on_step = [](const bonsai_step*, void* user) -> int32_t {
        Pair& p = *static_cast<Pair*>(user);
        return draw(p.other, request(1), &p.rgb);
    };
    CHECK(draw(seen.ctx, params, &rgb) == BONSAI_OK && rgb == expected && pair.rgb == expected);
    bonsai_close(other);
    bonsai_close(seen.ctx);
}

TEST(closed_in_its_own_callback) {
    struct Seen {
        bonsai_context* ctx;
        int calls = 0, close_at;
    };
    for (int close_at = 1; close_at <= 5; ++close_at) {
        Seen seen{open_model(2), 0, close_at};
        bonsai_generate_params params = request(0, 3);
        params.user = &seen;
        params.on_progress = [](const bonsai_progress*, void* user) -> int32_t {
            Seen& s = *static_cast<Seen*>(user);
            if (++s.calls == s.close_at) bonsai_close(s.ctx);
            return 0;
        };
        std::string rgb;
        CHECK(draw(seen.ctx, params, &rgb) == BONSAI_ERR_CANCELLED && rgb.empty());
        CHECK(seen.calls == close_at); // and the sanitizers see that nothing is left
    }
}

// Contexts are closed while they draw, at moments of all kinds, and while others wait for their
// turn.
TEST(closed_while_others_use_it) {
    std::mt19937 random(5);
    for (int round = 0; round < 40; ++round) {
        bonsai_context* const ctx = open_model(1 + round % 3);
        const int users = round < 3 ? 3 : 1;
        std::atomic<int> begun{0}, odd{0};
        std::atomic<bool> drawing{false};
        std::vector<std::thread> threads;
        for (int i = 0; i < users; ++i)
            threads.emplace_back([&] {
                bonsai_generate_params params = request(0, 1000);
                params.user = &drawing;
                params.on_progress = [](const bonsai_progress*, void* user) -> int32_t {
                    *static_cast<std::atomic<bool>*>(user) = true;
                    std::this_thread::sleep_for(std::chrono::milliseconds(1)); // or it might end
                    return 0;
                };
                ++begun;
                std::string rgb;
                odd += draw(ctx, params, &rgb) != BONSAI_ERR_CANCELLED || !rgb.empty();
            });
        while (begun < users || !drawing)
            std::this_thread::yield();
        // Those that wait show nothing of it; within this time they are inside.
        if (users > 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
        bonsai_close(ctx);
        for (std::thread& thread : threads)
            thread.join();
        CHECK(odd == 0);
    }
}

TEST(cancelled_from_another_thread) {
    bonsai_context* const ctx = open_model(2);
    std::string expected, rgb;
    CHECK(draw(ctx, request(3), &expected) == BONSAI_OK);
    std::atomic<bool> done{false};
    std::thread nagging([&] {
        while (!done) {
            bonsai_cancel(ctx);
            std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
    });
    int cancelled = 0, drawn = 0;
    for (int round = 0; round < 100; ++round) {
        const bonsai_status status = draw(ctx, request(3, 1 + round % 2 * 50), &rgb);
        cancelled += status == BONSAI_ERR_CANCELLED;
        drawn += status == BONSAI_OK;
        CHECK((status == BONSAI_OK) == !rgb.empty());
    }
    done = true;
    nagging.join();
    CHECK(cancelled + drawn == 100 && cancelled > 0);
    CHECK(draw(ctx, request(3), &rgb) == BONSAI_OK && rgb == expected);
    bonsai_close(ctx);
}
