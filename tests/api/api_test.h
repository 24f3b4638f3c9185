// SPDX-License-Identifier: Apache-2.0
// What the tests of the C API share: the tiny model as a file, and opening and drawing in one call.
#pragma once

#include <string>

#include "bonsai.h"
#include "support/tiny_model.h"
#include "test.h"

namespace api_test {

inline const std::string& model_path() {
    static const test::TempFile file(test::TinyModel().file().bytes());
    return file.path();
}

struct Context {
    bonsai_context* ctx = nullptr;
    explicit Context(int threads = 2, int precision = BONSAI_PRECISION_FAST,
                     uint64_t max_memory = 0, const std::string& path = model_path()) {
        bonsai_open_params params;
        bonsai_open_params_init(&params);
        params.threads = threads;
        params.precision = precision;
        params.max_memory = max_memory;
        if (bonsai_open(path.c_str(), &params, &ctx) != BONSAI_OK)
            test::failed(__FILE__, __LINE__, bonsai_last_error());
    }
    explicit Context(const std::string& path) : Context(2, BONSAI_PRECISION_FAST, 0, path) {}
    ~Context() { bonsai_close(ctx); }
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    bonsai_model_info info() const {
        bonsai_model_info info{};
        info.struct_size = sizeof info;
        CHECK(bonsai_model_get_info(ctx, &info) == BONSAI_OK);
        return info;
    }
};

inline bonsai_generate_params request(const char* prompt, uint64_t seed) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = prompt;
    params.seed = seed;
    return params;
}

inline std::string pixels(const bonsai_image& image) {
    return std::string(reinterpret_cast<const char*>(image.rgb),
                       static_cast<size_t>(image.width) * image.height * 3);
}

// The pixels of the picture.
inline std::string draw(bonsai_context* ctx, const bonsai_generate_params& params) {
    bonsai_image image;
    if (bonsai_generate(ctx, &params, &image) != BONSAI_OK) {
        test::failed(__FILE__, __LINE__, bonsai_last_error());
        return "";
    }
    const std::string rgb = pixels(image);
    bonsai_image_free(&image);
    return rgb;
}

inline bool last_error_says(const char* text) {
    return std::strstr(bonsai_last_error(), text) != nullptr;
}

} // namespace api_test
