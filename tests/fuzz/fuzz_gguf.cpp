// SPDX-License-Identifier: Apache-2.0
// The input is a GGUF file: describe it, verify its hashes, open it as a model and, if that works,
// draw the smallest picture with it.
#include <cstring>
#include <numeric>
#include <random>

#include "json_check.h"
#include "memory_file.h"
#include "require.h"

namespace {

constexpr uint64_t kMemory = uint64_t{1} << 28; // bytes a drawing may take
constexpr int32_t kTokens = 32; // longer prompts take too long to encode for a fuzzer

void describe(const char* path) {
    for (const int32_t json : {0, 1}) {
        char* text = nullptr;
        const bonsai_status status = bonsai_file_describe(path, json, &text);
        fuzz::require_reason(status);
        if (status != BONSAI_OK) return;
        fuzz::require_clean(text, json == 0);
        fuzz::require(json == 0 || fuzz::is_json(text), "the description is JSON", text);
        bonsai_free(text);
    }
    fuzz::require_reason(bonsai_file_verify(path, nullptr, nullptr));
}

void draw(bonsai_context* ctx) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = "a tree";
    params.width = params.height = 16;
    params.steps = 1;
    bonsai_image image{};
    // Weights may be such that no number or one plain colour comes out, which is said, but not
    // before they are used.
    const bonsai_status status = bonsai_generate(ctx, &params, &image);
    const bool silent = std::strstr(bonsai_last_error(), "not a number") == nullptr &&
                        std::strstr(bonsai_last_error(), "one plain colour") == nullptr;
    if (status != BONSAI_ERR_INTERNAL || silent) fuzz::require_reason(status);
    bonsai_image_free(&image);
}

void open(const char* path, bool drawing) {
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = 1;
    params.max_memory = kMemory;
    bonsai_context* ctx = nullptr;
    const bonsai_status status = bonsai_open(path, &params, &ctx);
    fuzz::require_reason(status);
    fuzz::require((ctx != nullptr) == (status == BONSAI_OK), "a context only on success", path);
    if (!ctx) return;
    bonsai_model_info info{};
    info.struct_size = sizeof info;
    fuzz::require_reason(bonsai_model_get_info(ctx, &info));
    int32_t ids[8];
    int32_t count = 0;
    fuzz::require_reason(bonsai_prompt_tokenize(ctx, "a <u> tree", ids, 8, &count));
    bonsai_memory_plan plan{};
    plan.struct_size = sizeof plan;
    fuzz::require_reason(bonsai_plan_memory(ctx, 16, 32, &plan));
    if (info.max_tokens <= kTokens && drawing) draw(ctx);
    bonsai_close(ctx);
}

} // namespace

extern "C" {

// libFuzzer's own mutations.
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Now and then the file is cut off, as failed downloads are; libFuzzer alone rarely cuts at the
// end.
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    std::minstd_rand random(seed);
    if (size > 1 && random() % 8 == 0) return 1 + random() % (size - 1);
    return LLVMFuzzerMutate(data, size, max_size);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = fuzz::memory_file(data, size);
    describe(path.c_str());
    // Drawing takes ten times as long as the rest: every fourth model draws.
    open(path.c_str(), std::accumulate(data, data + size, 0u) % 4 == 0);
    return 0;
}

} // extern "C"
