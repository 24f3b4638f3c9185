// SPDX-License-Identifier: Apache-2.0
// Same file, seed, size, precision and CPU level: the same bytes, whatever else the process did or
// does. What differs between levels is measured in model/test_levels.py.
#include <atomic>
#include <cstdlib>
#include <thread>

#include "api/api_test.h"
#include "backends/cpu/features.h"

using api_test::model_path;

// The same architecture with the decoder's first bias taken from another place: other pictures.
static const std::string& other_model_path() {
    static const test::TempFile file([] {
        std::string bytes = test::TinyModel().file().bytes();
        for (size_t i = bytes.size() / 2; i < bytes.size() / 2 + 4096; i += 64)
            bytes[i] = static_cast<char>(bytes[i] ^ 1);
        return bytes;
    }());
    return file.path();
}

class Context {
  public:
    Context(const std::string& path, int32_t threads, int32_t precision) {
        bonsai_open_params params;
        bonsai_open_params_init(&params);
        params.threads = threads;
        params.precision = precision;
        if (bonsai_open(path.c_str(), &params, &ctx_) != BONSAI_OK)
            test::failed(__FILE__, __LINE__, bonsai_last_error());
    }
    Context(Context&& other) noexcept : ctx_(other.ctx_) { other.ctx_ = nullptr; }
    ~Context() { bonsai_close(ctx_); }
    bonsai_context* get() const { return ctx_; }

  private:
    bonsai_context* ctx_ = nullptr;
};

// All that a run gives: the latents and previews of each step, the PNG with its metadata.
static std::string draw(const Context& c, const char* prompt, int32_t width = 48,
                        int32_t height = 80) {
    std::string out;
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = prompt;
    params.width = width;
    params.height = height;
    params.steps = 3;
    params.seed = 11;
    params.preview_every = 2;
    params.user = &out;
    params.on_step = [](const bonsai_step* s, void* user) -> int32_t {
        auto* text = static_cast<std::string*>(user);
        const size_t latents = sizeof(float) *
                               static_cast<size_t>(s->latent_height * s->latent_width) *
                               static_cast<size_t>(s->latent_channels);
        text->append(reinterpret_cast<const char*>(s->latents), latents);
        if (s->rgb)
            text->append(reinterpret_cast<const char*>(s->rgb),
                         static_cast<size_t>(s->width * s->height * 3));
        return 0;
    };
    bonsai_image image;
    uint8_t* png = nullptr;
    size_t size = 0;
    if (bonsai_generate(c.get(), &params, &image) != BONSAI_OK ||
        bonsai_image_encode_png(&image, &png, &size) != BONSAI_OK) {
        test::failed(__FILE__, __LINE__, bonsai_last_error());
        return "";
    }
    out.append(reinterpret_cast<char*>(png), size);
    bonsai_free(png);
    bonsai_image_free(&image);
    return out;
}

static std::string encode(const Context& c, const char* prompt) {
    std::vector<float> rows(24 * 128);
    if (bonsai_prompt_encode(c.get(), prompt, rows.data(), rows.size()) != BONSAI_OK)
        test::failed(__FILE__, __LINE__, bonsai_last_error());
    return std::string(reinterpret_cast<char*>(rows.data()), rows.size() * sizeof(float));
}

static void check_level(int32_t precision) {
    const Context one(model_path(), 1, precision);
    const std::string first = draw(one, "a tree"), rows = encode(one, "a tree");
    CHECK(!first.empty());
    CHECK(draw(one, "a tree") == first); // the prompt is known by now
    for (const int32_t threads : {2, 7}) {
        const Context more(model_path(), threads, precision);
        CHECK(draw(more, "a tree") == first);
        CHECK(encode(more, "a tree") == rows);
    }

    // After pictures of other sizes and prompts, whose scratch memory and caches stay.
    CHECK(draw(one, "some quite different thing", 96, 16) != first);
    draw(one, "", 16, 16);
    CHECK(encode(one, "a tree") == rows);
    CHECK(draw(one, "a tree") == first);

    // With other models open, idle and drawing on other threads.
    std::vector<Context> others;
    for (const int32_t threads : {1, 2})
        others.emplace_back(other_model_path(), threads, precision);
    std::vector<std::string> drawn(others.size());
    for (size_t i = 0; i < others.size(); ++i)
        drawn[i] = draw(others[i], "a tree");
    CHECK(drawn[0] != first && drawn[0] == drawn[1]);
    std::atomic<bool> done{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> busy;
    for (const Context& other : others)
        busy.emplace_back([&] {
            do
                wrong += draw(other, "a tree") != drawn[0];
            while (!done);
        });
    for (int round = 0; round < 3; ++round)
        CHECK(draw(one, "a tree") == first);
    done = true;
    for (std::thread& thread : busy)
        thread.join();
    CHECK(wrong == 0);
}

TEST(same_request_same_bytes_at_every_level) {
    namespace cpu = bonsai::cpu;
    int levels = 0;
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
#if defined(_WIN32)
        _putenv_s("BONSAI_CPU", cpu::level_info(level).name);
#else
        setenv("BONSAI_CPU", cpu::level_info(level).name, 1);
#endif
        for (const int32_t precision : {BONSAI_PRECISION_FAST, BONSAI_PRECISION_EXACT})
            check_level(precision);
        std::printf("level %s\n", cpu::level_info(level).name);
        ++levels;
    }
    CHECK(levels > 0);
}
