// SPDX-License-Identifier: Apache-2.0
// The C API as callers meet it: defaults, wrong arguments, callbacks, threads, and the promise that
// a picture depends on nothing but the request.
#include <atomic>
#include <chrono>
#include <thread>

#include "api/api_test.h"

using namespace api_test;

TEST(draws_with_the_files_defaults) {
    const Context c;
    const bonsai_generate_params params = request("a tree", 3);
    bonsai_image image;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_OK);
    CHECK(image.width == 32 && image.height == 32 && image.seed == 3);
    CHECK(image.stats.prompt_tokens == 8 && !image.stats.prompt_truncated);
    CHECK(std::strstr(image.metadata, "prompt: a tree\nseed: 3\nsize: 32x32\nsteps: 2\n") ==
          image.metadata);
    const std::string rgb = pixels(image);
    CHECK(rgb != std::string(rgb.size(), rgb[0]));
    bonsai_image_free(&image);
    CHECK(image.rgb == nullptr);
}

TEST(same_request_same_bytes) {
    const Context one(1), two(2), seven(7);
    const bonsai_generate_params params = request("same", 1);
    const std::string first = draw(one.ctx, params);
    CHECK(draw(two.ctx, params) == first);
    CHECK(draw(seven.ctx, params) == first);
    bonsai_generate_params other = request("other", 2);
    other.width = 64, other.steps = 3;
    CHECK(draw(two.ctx, other) != first);
    CHECK(draw(two.ctx, params) == first); // nothing is left over from the picture before
}

TEST(a_prompt_is_encoded_once_for_pictures_in_a_row) {
    const Context c;
    const std::string first = draw(c.ctx, request("again", 1));
    int ticks = 0;
    bonsai_generate_params params = request("again", 1);
    params.user = &ticks;
    params.on_progress = [](const bonsai_progress* p, void* user) -> int32_t {
        *static_cast<int*>(user) += p->stage == BONSAI_STAGE_TEXT_ENCODER;
        return 0;
    };
    CHECK(draw(c.ctx, params) == first && ticks == 0);
    params.prompt = "else";
    CHECK(draw(c.ctx, params) != first && ticks > 0);
    CHECK(draw(c.ctx, request("again", 1)) == first);
    ticks = 0; // and both are still known
    draw(c.ctx, params);
    params.prompt = "again";
    CHECK(draw(c.ctx, params) == first && ticks == 0);
}

TEST(several_images_are_the_single_ones) {
    const Context c;
    bonsai_generate_params params = request("three", 10);
    params.images = 3;
    bonsai_image images[3];
    CHECK(bonsai_generate(c.ctx, &params, images) == BONSAI_OK);
    for (uint64_t i = 0; i < 3; ++i) {
        CHECK(images[i].seed == 10 + i);
        CHECK(pixels(images[i]) == draw(c.ctx, request("three", 10 + i)));
        bonsai_image_free(&images[i]);
    }
}

TEST(wrong_arguments_are_explained) {
    const Context c;
    bonsai_image image;
    bonsai_generate_params params = request("x", 0);
    params.width = 40;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("multiples of 16"));
    params = request("x", 0);
    params.steps = 5000;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("steps 5000"));
    params = request("x", 0);
    params.images = 0;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("images 0"));
    params = request(nullptr, 0);
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("prompt is NULL"));
    params = request("a\xff\xfe", 0);
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("invalid UTF-8 at byte 1 (0xff)"));
    params = request("x", 0);
    params.noise_dtype = 9;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("noise_dtype 9"));
    std::memset(&image, 0x55, sizeof image);
    CHECK(bonsai_generate(nullptr, &params, &image) == BONSAI_ERR_ARGUMENT &&
          image.rgb == nullptr && image.metadata == nullptr);
    bonsai_model_info info;
    info.struct_size = 0;
    CHECK(bonsai_model_get_info(c.ctx, &info) == BONSAI_ERR_ARGUMENT &&
          last_error_says("struct_size"));
    bonsai_context* none = nullptr;
    CHECK(bonsai_open("/no/such/model.gguf", nullptr, &none) == BONSAI_ERR_IO && none == nullptr);
    bonsai_open_params open_params;
    bonsai_open_params_init(&open_params);
    open_params.device = "abacus:0";
    CHECK(bonsai_open(model_path().c_str(), &open_params, &none) == BONSAI_ERR_ARGUMENT &&
          last_error_says("abacus:0"));
}

TEST(long_prompts_are_cut_and_empty_ones_drawn) {
    const Context c;
    const std::string long_prompt(5000, 'x');
    const bonsai_generate_params params = request(long_prompt.c_str(), 0);
    bonsai_image image;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_OK);
    CHECK(image.stats.prompt_truncated == 1 && image.stats.prompt_tokens == 24);
    bonsai_image_free(&image);
    CHECK(draw(c.ctx, request("", 0)).size() == 32 * 32 * 3);
}

TEST(whatever_is_drawn_can_be_saved) {
    const Context c;
    const std::string newlines((1 << 20) - 10, '\n'); // two bytes each in the metadata
    const bonsai_generate_params params = request(newlines.c_str(), 0);
    bonsai_image image;
    uint8_t* png = nullptr;
    size_t size = 0;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_OK);
    CHECK(bonsai_image_encode_png(&image, &png, &size) == BONSAI_OK && size > newlines.size());
    bonsai_free(png);
    bonsai_image_free(&image);
    const std::string longer(1 << 20, 'x');
    const bonsai_generate_params refused = request(longer.c_str(), 0);
    CHECK(bonsai_generate(c.ctx, &refused, &image) == BONSAI_ERR_ARGUMENT &&
          last_error_says("at most"));
}

TEST(callbacks_see_progress_and_can_stop) {
    struct Seen {
        int progress = 0, steps = 0, previews = 0, stop_at = 1000000, stage = -1;
        double last = 0, fraction = 0;
        bonsai_context* ctx = nullptr;
        bonsai_status reentrant = BONSAI_OK;
    } seen;
    const Context c;
    seen.ctx = c.ctx;
    bonsai_generate_params params = request("watch", 0);
    params.preview_every = 1;
    params.user = &seen;
    params.on_progress = [](const bonsai_progress* p, void* user) -> int32_t {
        Seen& s = *static_cast<Seen*>(user);
        if (p->fraction < 0 || p->fraction > 1 || p->total_seconds < s.last) return 1;
        s.last = p->total_seconds;
        if (p->stage == s.stage && p->fraction < s.fraction) return 1; // previews included
        s.stage = p->stage, s.fraction = p->fraction;
        bonsai_image image;
        const bonsai_generate_params again = request("again", 0);
        s.reentrant = bonsai_generate(s.ctx, &again, &image);
        return ++s.progress >= s.stop_at;
    };
    params.on_step = [](const bonsai_step* step, void* user) -> int32_t {
        Seen& s = *static_cast<Seen*>(user);
        s.steps += step->step == s.steps + 1 && step->latents != nullptr;
        s.previews += step->rgb != nullptr;
        return 0;
    };
    bonsai_image image;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_OK);
    bonsai_image_free(&image);
    CHECK(seen.progress > 6 && seen.steps == 2 && seen.previews == 2);
    CHECK(seen.reentrant == BONSAI_ERR_ARGUMENT);
    for (const int stop_at : {1, 2, 4, 6}) {
        seen = Seen();
        seen.ctx = c.ctx, seen.stop_at = stop_at;
        CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_ERR_CANCELLED &&
              image.rgb == nullptr);
        CHECK(seen.progress == stop_at);
    }
}

TEST(threads_share_a_context_and_close_cancels) {
    const Context c;
    const std::string expected = draw(c.ctx, request("shared", 5));
    std::vector<std::thread> threads;
    std::atomic<int> equal{0};
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] { equal += draw(c.ctx, request("shared", 5)) == expected; });
    for (std::thread& thread : threads)
        thread.join();
    CHECK(equal == 4);

    auto* doomed = new Context;
    std::atomic<bool> started{false};
    bonsai_status status = BONSAI_OK;
    bonsai_generate_params params = request("long", 0);
    params.steps = 1000;
    params.user = &started;
    params.on_progress = [](const bonsai_progress*, void* user) -> int32_t {
        *static_cast<std::atomic<bool>*>(user) = true;
        return 0;
    };
    std::thread drawing([&] {
        bonsai_image image;
        status = bonsai_generate(doomed->ctx, &params, &image);
    });
    while (!started)
        std::this_thread::yield();
    bonsai_status waiting_status = BONSAI_OK;
    std::atomic<bool> waits{false};
    std::thread waiting([&] {
        bonsai_image image;
        waits = true;
        waiting_status = bonsai_generate(doomed->ctx, &params, &image);
    });
    while (!waits)
        std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(200)); // by then it is inside
    delete doomed;
    drawing.join();
    waiting.join();
    CHECK(status == BONSAI_ERR_CANCELLED && waiting_status == BONSAI_ERR_CANCELLED);
}

TEST(prompts_are_tokenised_and_encoded) {
    const Context c;
    int32_t ids[8] = {0}, count = 0;
    CHECK(bonsai_prompt_tokenize(c.ctx, "ab", ids, 8, &count) == BONSAI_OK);
    CHECK(count == 4 && ids[0] == 257 && ids[1] == 'a' && ids[2] == 'b' && ids[3] == 258);
    const bonsai_model_info info = c.info();
    std::vector<float> rows(static_cast<size_t>(info.max_tokens) * info.prompt_width);
    CHECK(bonsai_prompt_encode(c.ctx, "ab", rows.data(), rows.size()) == BONSAI_OK);
    CHECK(bonsai_prompt_encode(c.ctx, "ab", rows.data(), 7) == BONSAI_ERR_ARGUMENT);
    CHECK(std::string(info.hash).size() == 64 && std::string(info.variant) == "ternary");
}
