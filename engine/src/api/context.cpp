// SPDX-License-Identifier: Apache-2.0
// Opening and closing a model, and the turns of the calls that use it.
#include "api/context.h"

#include "api/boundary.h"

namespace bonsai::api {

Visit::Visit(const bonsai_context* ctx) : ctx_(ctx) {
    const std::lock_guard<std::mutex> lock(ctx_->mutex);
    ++ctx_->calls;
}

Visit::~Visit() {
    bool last = false;
    {
        const std::lock_guard<std::mutex> lock(ctx_->mutex);
        --ctx_->calls;
        last = ctx_->orphaned && ctx_->calls == 0;
        ctx_->changed.notify_all(); // under the lock: close may delete as soon as it is free
    }
    if (last) delete ctx_;
}

Turn::~Turn() {
    if (!held_) return;
    const std::lock_guard<std::mutex> lock(ctx_->mutex);
    ctx_->busy = false;
    ctx_->owner = std::thread::id();
    ctx_->changed.notify_all();
}

Status Turn::take() {
    std::unique_lock<std::mutex> lock(ctx_->mutex);
    if (ctx_->owner == std::this_thread::get_id())
        return fail(ErrorCode::kArgument, "a callback must not use the context that called it");
    ctx_->changed.wait(lock, [this] { return !ctx_->busy || ctx_->closing; });
    if (ctx_->closing) return fail(ErrorCode::kCancelled, "the context is being closed");
    held_ = ctx_->busy = true;
    ctx_->owner = std::this_thread::get_id();
    ctx_->pipeline->clear_cancel(); // under the lock, so that it cannot undo that of a close
    return Status();
}

Status open_options(const bonsai_open_params* params, bonsai_open_params* p,
                    PipelineOptions* options) {
    bonsai_open_params_init(p);
    if (params) BONSAI_TRY(take_over(params, p));
    if (p->threads < 0 || p->threads > 4096)
        return fail(ErrorCode::kArgument, "threads %d: expected 1 to 4096 (0: all physical cores)",
                    p->threads);
    if (p->precision != BONSAI_PRECISION_FAST && p->precision != BONSAI_PRECISION_EXACT)
        return fail(ErrorCode::kArgument, "precision %d: expected a bonsai_precision",
                    p->precision);
    options->device = p->device ? p->device : "auto";
    options->backend.threads = p->threads;
    options->backend.precision =
        p->precision == BONSAI_PRECISION_EXACT ? Precision::kExact : Precision::kFast;
    return Status();
}

} // namespace bonsai::api

using namespace bonsai;
using namespace bonsai::api;

extern "C" {

void bonsai_open_params_init(bonsai_open_params* params) {
    if (!params) return;
    *params = bonsai_open_params{};
    params->struct_size = sizeof *params;
}

bonsai_status bonsai_open(const char* path, const bonsai_open_params* params,
                          bonsai_context** ctx) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}}));
        *ctx = nullptr;
        BONSAI_TRY(require({{"path", path}}));
        bonsai_open_params p;
        PipelineOptions options;
        BONSAI_TRY(open_options(params, &p, &options));
        options.max_memory = p.max_memory;
        if (const bonsai_log_callback log = p.log) {
            void* user = p.log_user;
            options.log = [log, user](const std::string& line) { log(line.c_str(), user); };
        }
        std::unique_ptr<bonsai_context> opened(new bonsai_context);
        BONSAI_TRY(Pipeline::open(path, options, &opened->pipeline));
        *ctx = opened.release();
        return Status();
    });
}

void bonsai_close(bonsai_context* ctx) {
    if (!ctx) return;
    {
        std::unique_lock<std::mutex> lock(ctx->mutex);
        ctx->closing = true;
        ctx->pipeline->cancel();
        ctx->changed.notify_all();
        if (ctx->owner == std::this_thread::get_id()) { // a callback: waiting would never end
            ctx->orphaned = true;
            return;
        }
        ctx->changed.wait(lock, [ctx] { return ctx->calls == 0; });
    }
    delete ctx;
}

bonsai_status bonsai_model_get_info(const bonsai_context* ctx, bonsai_model_info* info) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"info", info}}));
        const Visit visit(ctx);
        const Pipeline& pipeline = *ctx->pipeline;
        const Config& config = pipeline.config();
        bonsai_model_info full{};
        full.default_width = static_cast<int32_t>(config.default_width);
        full.default_height = static_cast<int32_t>(config.default_height);
        full.default_steps = static_cast<int32_t>(config.default_steps);
        full.default_guidance = config.default_guidance;
        full.distilled = config.distilled;
        full.max_tokens = static_cast<int32_t>(config.text.max_tokens);
        full.prompt_width = static_cast<int32_t>(config.text.prompt_width());
        full.size_multiple = static_cast<int32_t>(kSizeMultiple);
        full.tensors = static_cast<int32_t>(pipeline.file().tensors().size());
        full.file_bytes = pipeline.file().file().size();
        full.transformer_bytes = pipeline.transformer().weights().bytes;
        full.text_encoder_bytes = pipeline.text_encoder().weights().bytes;
        full.vae_bytes = pipeline.vae().weights().bytes;
        for (const GgufTensor& tensor : pipeline.file().tensors())
            full.parameters += tensor.elements();
        set_text(full.hash, pipeline.hash());
        set_text(full.variant, config.variant);
        set_text(full.name, config.name);
        set_text(full.license, config.license);
        set_text(full.source, config.source);
        set_text(full.device, pipeline.device().id);
        return hand_over(full, info);
    });
}

void bonsai_cancel(bonsai_context* ctx) {
    if (ctx) ctx->pipeline->cancel();
}

} // extern "C"
