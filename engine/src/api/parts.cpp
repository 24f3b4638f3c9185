// SPDX-License-Identifier: Apache-2.0
// Parts of the pipeline for callers that want to look inside or draw by themselves.
#include <algorithm>
#include <cstring>
#include <vector>

#include "api/boundary.h"
#include "api/context.h"
#include "core/rng.h"

using namespace bonsai;
using namespace bonsai::api;

extern "C" {

bonsai_status bonsai_prompt_tokenize(bonsai_context* ctx, const char* prompt, int32_t* ids,
                                     int32_t capacity, int32_t* count) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"prompt", prompt}, {"count", count}}));
        if (capacity > 0) BONSAI_TRY(require({{"ids", ids}}));
        const Visit visit(ctx);
        std::vector<int32_t> all;
        BONSAI_TRY(ctx->pipeline->tokenize(prompt, &all));
        *count = static_cast<int32_t>(all.size());
        std::copy_n(all.begin(),
                    std::min<size_t>(all.size(), static_cast<size_t>(std::max(0, capacity))), ids);
        return Status();
    });
}

bonsai_status bonsai_prompt_encode(bonsai_context* ctx, const char* prompt, float* out,
                                   size_t count) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"prompt", prompt}, {"out", out}}));
        Turn turn(ctx);
        const TextEncoderConfig& text = ctx->pipeline->config().text;
        const auto expected = static_cast<size_t>(text.max_tokens * text.prompt_width());
        if (count != expected)
            return fail(ErrorCode::kArgument,
                        "count is %zu, expected max_tokens * prompt_width = %zu", count, expected);
        BONSAI_TRY(turn.take());
        std::vector<float> rows;
        BONSAI_TRY(ctx->pipeline->encode_prompt(prompt, &rows));
        std::memcpy(out, rows.data(), rows.size() * sizeof(float));
        return Status();
    });
}

bonsai_status bonsai_embeds_save(bonsai_context* ctx, const char* prompt, const char* path) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"prompt", prompt}, {"path", path}}));
        Turn turn(ctx);
        BONSAI_TRY(turn.take());
        return ctx->pipeline->save_embeds(prompt, path);
    });
}

bonsai_status bonsai_embeds_load(bonsai_context* ctx, const char* path, char** prompt) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"path", path}, {"prompt", prompt}}));
        *prompt = nullptr;
        Turn turn(ctx);
        BONSAI_TRY(turn.take());
        std::string text;
        BONSAI_TRY(ctx->pipeline->load_embeds(path, &text));
        return text_out(text, prompt);
    });
}

bonsai_status bonsai_noise(uint64_t seed, float* out, size_t count) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"out", out}}));
        if (count < 16)
            return fail(ErrorCode::kArgument, "count is %zu, expected at least 16", count);
        torch_cpu_randn(seed, out, count);
        return Status();
    });
}

bonsai_status bonsai_plan_memory(bonsai_context* ctx, int32_t width, int32_t height,
                                 bonsai_memory_plan* plan) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"plan", plan}}));
        const Visit visit(ctx);
        bonsai_memory_plan full{};
        BONSAI_TRY(ctx->pipeline->plan_memory(width, height, &full));
        return hand_over(full, plan);
    });
}

} // extern "C"
