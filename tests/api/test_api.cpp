// SPDX-License-Identifier: Apache-2.0
// The C API as callers meet it: defaults, wrong arguments, callbacks, threads, and the promise that
// a picture depends on nothing but the request.
#include "bonsai.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#ifdef __linux__
#include <sys/resource.h>
#endif

#include "support/tiny_model.h"
#include "test.h"

static const std::string& model_path() {
    static const test::TempFile file(test::TinyModel().file().bytes());
    return file.path();
}

struct Context {
    bonsai_context* ctx = nullptr;
    explicit Context(int threads = 2, int precision = BONSAI_PRECISION_FAST,
                     uint64_t max_memory = 0) {
        bonsai_open_params params;
        bonsai_open_params_init(&params);
        params.threads = threads;
        params.precision = precision;
        params.max_memory = max_memory;
        if (bonsai_open(model_path().c_str(), &params, &ctx) != BONSAI_OK)
            test::failed(__FILE__, __LINE__, bonsai_last_error());
    }
    ~Context() { bonsai_close(ctx); }
};

static bonsai_generate_params request(const char* prompt, uint64_t seed) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = prompt;
    params.seed = seed;
    return params;
}

static std::string draw(bonsai_context* ctx, const bonsai_generate_params& params) {
    bonsai_image image;
    if (bonsai_generate(ctx, &params, &image) != BONSAI_OK) {
        test::failed(__FILE__, __LINE__, bonsai_last_error());
        return "";
    }
    const std::string rgb(reinterpret_cast<char*>(image.rgb),
                          static_cast<size_t>(image.width) * image.height * 3);
    bonsai_image_free(&image);
    return rgb;
}

static bool last_error_says(const char* text) {
    return std::strstr(bonsai_last_error(), text) != nullptr;
}

TEST(draws_with_the_files_defaults) {
    const Context c;
    const bonsai_generate_params params = request("a tree", 3);
    bonsai_image image;
    CHECK(bonsai_generate(c.ctx, &params, &image) == BONSAI_OK);
    CHECK(image.width == 32 && image.height == 32 && image.seed == 3);
    CHECK(image.stats.prompt_tokens == 8 && !image.stats.prompt_truncated);
    CHECK(std::strstr(image.metadata, "prompt: a tree\nseed: 3\nsize: 32x32\nsteps: 2\n") ==
          image.metadata);
    const std::string rgb(reinterpret_cast<char*>(image.rgb), 32 * 32 * 3);
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
        CHECK(std::memcmp(images[i].rgb, draw(c.ctx, request("three", 10 + i)).data(),
                          32 * 32 * 3) == 0);
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

#ifdef __linux__
TEST(a_plan_costs_no_memory) {
    const Context c;
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    CHECK(bonsai_plan_memory(c.ctx, 16384, 16384, &plan) == BONSAI_OK);
    getrusage(RUSAGE_SELF, &after);
    CHECK(plan.transformer_activations > uint64_t(1) << 30);
    CHECK(after.ru_maxrss - before.ru_maxrss < 50000); // kilobytes
}
#endif

TEST(a_limit_below_need_is_an_error_and_a_low_one_makes_strips) {
    const Context tight(2, BONSAI_PRECISION_FAST, 100000);
    bonsai_image image;
    bonsai_generate_params params = request("x", 0);
    CHECK(bonsai_generate(tight.ctx, &params, &image) == BONSAI_ERR_MEMORY &&
          last_error_says("limit"));
    params.width = params.height = 512;
    params.steps = 1;
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    const Context roomy;
    CHECK(bonsai_plan_memory(roomy.ctx, 512, 512, &plan) == BONSAI_OK && plan.fits &&
          !plan.vae_tiled);
    const Context limited(2, BONSAI_PRECISION_FAST, plan.vae_weights + plan.vae_activations - 1);
    CHECK(bonsai_generate(limited.ctx, &params, &image) == BONSAI_OK);
    CHECK(image.stats.vae_tiled == 1);
    const std::string strips(reinterpret_cast<const char*>(image.rgb), size_t{512} * 512 * 3);
    bonsai_image_free(&image);
    CHECK(bonsai_plan_memory(limited.ctx, 512, 512, &plan) == BONSAI_OK && plan.fits &&
          plan.vae_tiled && plan.vae_weights + plan.vae_activations <= plan.limit);
    CHECK(strips == draw(roomy.ctx, params));
}

// Weights that go back block by block are the same weights: only memory and time may differ.
TEST(a_tight_limit_streams_the_weights) {
    const Context roomy;
    bonsai_memory_plan whole, tight;
    whole.struct_size = tight.struct_size = sizeof whole;
    CHECK(bonsai_plan_memory(roomy.ctx, 16, 16, &whole) == BONSAI_OK && whole.fits);
    const uint64_t limit = whole.transformer_weights + whole.transformer_activations - 1;
    const Context limited(2, BONSAI_PRECISION_FAST, limit);
    CHECK(bonsai_plan_memory(limited.ctx, 16, 16, &tight) == BONSAI_OK);
    CHECK(tight.fits && tight.peak <= limit && !tight.vae_tiled);
    CHECK(tight.transformer_weights < whole.transformer_weights);
    bonsai_generate_params params = request("x", 7);
    params.width = params.height = 16;
    CHECK(draw(limited.ctx, params) == draw(roomy.ctx, params));

    const Context narrow(2, BONSAI_PRECISION_FAST,
                         whole.text_encoder_weights + whole.text_encoder_activations - 1);
    CHECK(bonsai_plan_memory(narrow.ctx, 16, 16, &tight) == BONSAI_OK);
    CHECK(tight.text_encoder_weights < whole.text_encoder_weights);
    bonsai_model_info info;
    info.struct_size = sizeof info;
    CHECK(bonsai_model_get_info(roomy.ctx, &info) == BONSAI_OK);
    std::vector<float> a(static_cast<size_t>(info.max_tokens) * info.prompt_width), b(a.size());
    CHECK(bonsai_prompt_encode(roomy.ctx, "x", a.data(), a.size()) == BONSAI_OK);
    CHECK(bonsai_prompt_encode(narrow.ctx, "x", b.data(), b.size()) == BONSAI_OK);
    CHECK(a == b);
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
    bonsai_model_info info;
    info.struct_size = sizeof info;
    CHECK(bonsai_model_get_info(c.ctx, &info) == BONSAI_OK);
    std::vector<float> rows(static_cast<size_t>(info.max_tokens) * info.prompt_width);
    CHECK(bonsai_prompt_encode(c.ctx, "ab", rows.data(), rows.size()) == BONSAI_OK);
    CHECK(bonsai_prompt_encode(c.ctx, "ab", rows.data(), 7) == BONSAI_ERR_ARGUMENT);
    CHECK(std::string(info.hash).size() == 64 && std::string(info.variant) == "ternary");
}

TEST(missing_extra_and_misshaped_tensors_are_named) {
    const auto opens = [](const std::string& bytes) {
        const test::TempFile file(bytes);
        bonsai_context* ctx = nullptr;
        const bonsai_status status = bonsai_open(file.path().c_str(), nullptr, &ctx);
        bonsai_close(ctx);
        return status;
    };
    const char* left_out = "dit.transformer_blocks.0.attn.to_k.weight";
    CHECK(
        opens(
            test::TinyModel([&](const std::string& n) { return n != left_out; }).file().bytes()) ==
        BONSAI_ERR_FORMAT);
    CHECK(last_error_says(left_out) && last_error_says("missing"));
    CHECK(opens(test::TinyModel().file().tensor("dit.surplus.weight", 0, {1}, "abcd").bytes()) ==
          BONSAI_ERR_FORMAT);
    CHECK(last_error_says("dit.surplus.weight"));
    for (const char* stray : {"vae.stray.weight", "unet.weight"}) {
        CHECK(opens(test::TinyModel().file().tensor(stray, 0, {1}, "abcd").bytes()) ==
              BONSAI_ERR_FORMAT);
        CHECK(last_error_says(stray));
    }
    CHECK(opens(test::TinyModel().file().tensor("vae.encoder.x", 0, {1}, "abcd").bytes()) ==
          BONSAI_OK);
    test::TinyModel misshaped([&](const std::string& n) { return n != left_out; });
    misshaped.file().tensor(left_out, 0, {128, 2}, std::string(1024, '\0'));
    CHECK(opens(misshaped.file().bytes()) == BONSAI_ERR_FORMAT &&
          last_error_says("is 2 x 128, expected 128 x 128"));
    test::TinyModel foreign([&](const std::string& n) { return n != left_out; });
    foreign.file().tensor(left_out, 35, {256, 64}, std::string(66 * 64, '\0'));
    CHECK(opens(foreign.file().bytes()) == BONSAI_ERR_UNSUPPORTED && last_error_says("TQ2_0"));
}

// The file with another 32-bit value for a key.
template <typename T> static std::string patched(const char* key, T value) {
    std::string bytes = test::TinyModel().file().bytes();
    const size_t at = bytes.find(key) + std::strlen(key) + 4; // behind the type
    std::memcpy(&bytes[at], &value, 4);
    return bytes;
}

TEST(impossible_values_are_refused_when_opened) {
    const struct {
        std::string bytes;
        const char* message;
    } cases[] = {
        {patched("bonsai.vae.latent_channels", 1u), "latent_channels is 1, expected 4"},
        {patched("bonsai.default.width", 65536u), "width is 65536, expected 16 to 16384"},
        {patched("bonsai.te.norm_eps", 0.0f), "cannot be computed: rms_norm: eps 0"},
        {patched("bonsai.te.max_tokens", 0u), "max_tokens is 0"},
        {patched("bonsai.dit.heads", 3u), "expected 192 x 32"},
        {patched("bonsai.vae.norm_groups", 7u), "not a multiple of norm_groups"},
    };
    for (const auto& c : cases) {
        const test::TempFile file(c.bytes);
        bonsai_context* ctx = nullptr;
        CHECK(bonsai_open(file.path().c_str(), nullptr, &ctx) == BONSAI_ERR_FORMAT);
        CHECK(last_error_says(c.message));
        bonsai_close(ctx);
    }
}

// Numbers that no converter writes: an error or a small picture, never a crash.
TEST(every_number_may_lie) {
    const char* const keys[] = {"te.vocab_size",       "te.width",
                                "te.layers",           "te.heads",
                                "te.kv_heads",         "te.head_dim",
                                "te.ffn_width",        "te.max_tokens",
                                "dit.double_blocks",   "dit.single_blocks",
                                "dit.heads",           "dit.head_dim",
                                "dit.in_channels",     "dit.context_width",
                                "dit.mlp_width",       "dit.time_channels",
                                "vae.latent_channels", "vae.layers_per_block",
                                "vae.norm_groups",     "schedule.train_steps",
                                "default.width",       "default.steps",
                                "te.norm_eps",         "dit.rope_theta",
                                "vae.bn_eps",          "schedule.shift",
                                "format_version"};
    int opened = 0;
    for (const char* key : keys) {
        for (const uint32_t value : {0u, 1u, 2u, 3u, 24u, 65536u, 0x7fffffffu, 0xffffffffu}) {
            const test::TempFile file(patched((std::string("bonsai.") + key).c_str(), value));
            bonsai_context* ctx = nullptr;
            if (bonsai_open(file.path().c_str(), nullptr, &ctx) != BONSAI_OK) {
                CHECK(ctx == nullptr && last_error_says(file.path().c_str()));
                continue;
            }
            ++opened;
            bonsai_memory_plan plan;
            plan.struct_size = sizeof plan;
            bonsai_generate_params params = request("x", 0);
            params.width = params.height = 16;
            params.steps = 1;
            if (bonsai_plan_memory(ctx, 16, 16, &plan) == BONSAI_OK && plan.peak < 50000000) {
                bonsai_image image;
                if (bonsai_generate(ctx, &params, &image) == BONSAI_OK) CHECK(image.width == 16);
                bonsai_image_free(&image);
            }
            bonsai_close(ctx);
        }
    }
    CHECK(opened > 8); // max_tokens, default sizes and steps: some values are merely odd
}
