// SPDX-License-Identifier: Apache-2.0
// How much memory each stage takes: found by running it on a backend that computes nothing with an
// arena that holds nothing.
#include <algorithm>

#include "model/denoising.h"

namespace bonsai {

Status Pipeline::plan_text(StagePlan* plan) const {
    PlanBackend backend(*backend_);
    Arena arena;
    const Run run{backend, arena, nullptr, nullptr};
    const std::vector<int32_t> ids(static_cast<size_t>(config_.text.max_tokens), 0);
    Tensor rows;
    BONSAI_TRY(arena.allocate(config_.text.max_tokens, config_.text.prompt_width(), &rows));
    BONSAI_TRY(text_encoder_.encode(run, ids.data(), config_.text.max_tokens, rows));
    *plan = {arena.peak(), backend.scratch(), 0};
    return Status();
}

Status Pipeline::plan_denoise(const Request& request, int64_t pictures, StagePlan* plan) const {
    PlanBackend backend(*backend_);
    Arena arena;
    const Run run{backend, arena, nullptr, nullptr};
    Denoising d;
    d.arena = std::make_unique<Arena>();
    BONSAI_TRY(prepare_denoising(run, request, pictures, request.guidance > 1 ? 2 : 1, &d));
    BONSAI_TRY(embed_prompts(run, {}, &d));
    BONSAI_TRY(evaluate(run, request, 0, &d));
    *plan = {arena.peak(), backend.scratch(), d.arena->peak()};
    return Status();
}

Status Pipeline::plan_decode(int64_t height, int64_t width, uint64_t budget,
                             StagePlan* plan) const {
    PlanBackend backend(*backend_);
    Arena arena;
    const Run run{backend, arena, nullptr, nullptr};
    Tensor latents, pixels;
    BONSAI_TRY(arena.allocate(4 * height * width, config_.vae.latent_channels, &latents));
    BONSAI_TRY(arena.allocate(height * width * kSizeMultiple * kSizeMultiple, 3, &pixels));
    BONSAI_TRY(vae_.decode(run, latents, 2 * height, 2 * width, budget, pixels));
    *plan = {arena.peak(), backend.scratch(), 0};
    return Status();
}

// How many pictures are drawn together: as many as the device gains by and has room for beside all
// weights, in batches of one size. Kernels want a picture's first row at a multiple of 16.
int64_t Pipeline::choose_batch(const Request& request) const {
    constexpr int64_t kRows = 16, kEnough = 4096; // rows that fill every device: more gain nothing
    const int64_t tokens =
        config_.text.max_tokens + request.height / kSizeMultiple * (request.width / kSizeMultiple);
    int64_t most =
        std::min({request.images, backend_->batch(), std::max<int64_t>(1, kEnough / tokens)});
    if (request.probe || tokens % kRows != 0 || !transformer_.quantised()) most = 1;
    const uint64_t limit = memory_limit();
    const auto fits = [&](int64_t pictures) {
        StagePlan plan;
        return plan_denoise(request, pictures, &plan).ok() &&
               (limit == 0 || all_weights() + plan.total() <= limit);
    };
    while (most > 1 && !fits(most))
        --most;
    const int64_t batches = (request.images + most - 1) / most;
    return (request.images + batches - 1) / batches;
}

uint64_t Pipeline::all_weights() const {
    return text_encoder_.weights().bytes + transformer_.weights().bytes + vae_.weights().bytes;
}

// What the largest arena of a picture's stages takes.
Status Pipeline::plan_workspace(const Request& request, size_t* bytes) const {
    const int64_t height = request.height / kSizeMultiple, width = request.width / kSizeMultiple;
    StagePlan text, steps;
    PicturePlan decode;
    BONSAI_TRY(plan_text(&text));
    BONSAI_TRY(plan_denoise(request, choose_batch(request), &steps));
    BONSAI_TRY(plan_picture(height, width, memory_limit(), &decode));
    *bytes =
        std::max({text.arena + prompt_bytes(), steps.arena + prompt_bytes(), decode.stage.arena});
    return Status();
}

namespace {
constexpr size_t kAlignment = 256;
}

// What the rows of an encoded prompt take at the end of the workspace.
size_t Pipeline::prompt_bytes() const {
    const int64_t rows = config_.text.max_tokens, cols = config_.text.prompt_width();
    return static_cast<size_t>(rows * cols) * sizeof(float) + kAlignment;
}

// Room for them behind the arenas of the text encoder and the steps.
bool Pipeline::end_of_workspace(Tensor* prompt) const {
    if (!workspace_) return false;
    const size_t begin = workspace_->size() - prompt_bytes() + kAlignment - 1;
    uint8_t* data = static_cast<uint8_t*>(workspace_->data()) + begin / kAlignment * kAlignment;
    *prompt = f32_matrix(reinterpret_cast<float*>(data), config_.text.max_tokens,
                         config_.text.prompt_width());
    return true;
}

// Makes the buffer that the arenas of all stages and pictures share, if the device has room for
// that and all weights. Without it, and for what does not fit into it, arenas have their own.
Status Pipeline::reserve(const Request& request) {
    if (!backend_->keeps_memory()) return Status();
    size_t bytes = 0;
    BONSAI_TRY(plan_workspace(request, &bytes));
    if (workspace_ && workspace_->size() == bytes) return Status();
    workspace_.reset();
    if (all_weights() + bytes > memory_limit()) return Status();
    std::unique_ptr<Buffer> buffer;
    BONSAI_TRY(backend_->allocate(bytes, &buffer));
    workspace_ = std::move(buffer);
    return Status();
}

// An arena in the common buffer if it is free and large enough; a preview finds it in use.
Status Pipeline::borrow_arena(size_t bytes, std::unique_ptr<Arena>* out) const {
    if (workspace_ && workspace_.use_count() == 1 && workspace_->size() >= bytes)
        return Arena::create(*backend_, workspace_, out);
    return Arena::create(*backend_, bytes, out);
}

uint64_t Pipeline::memory_limit() const {
    return options_.max_memory > 0 ? options_.max_memory : backend_->memory_free();
}

// Whether a stage gives back each block's weights when it is done, and reads them again from the
// file in the next step: slower, but only a block is resident at a time.
bool Pipeline::streams(const WeightSet& weights, uint64_t activations, uint64_t limit) const {
    return limit > 0 && weights.bytes + activations > limit;
}
bool Pipeline::streams(const WeightSet& weights, uint64_t activations) const {
    return streams(weights, activations, memory_limit());
}

void Pipeline::evict(const WeightSet& weights) const {
    for (const Tensor& weight : weights.matrices)
        backend_->evict_weight(weight);
}

Status Pipeline::plan_memory(int64_t width, int64_t height, bonsai_memory_plan* plan) const {
    Request request;
    request.width = width;
    request.height = height;
    return plan_memory(request, plan);
}

Status Pipeline::plan_memory(const Request& asked, bonsai_memory_plan* plan) const {
    Request request = asked;
    BONSAI_TRY(resolve(&request));
    return plan_request(request, plan);
}

// The same for a resolved request, whose steps and guidance count too.
Status Pipeline::plan_request(const Request& request, bonsai_memory_plan* plan) const {
    const int64_t rows = request.height / kSizeMultiple, cols = request.width / kSizeMultiple;
    StagePlan text_plan, denoise_plan;
    PicturePlan picture;
    BONSAI_TRY(plan_text(&text_plan));
    BONSAI_TRY(plan_denoise(request, 1, &denoise_plan));
    const uint64_t text = text_plan.total(), denoise = denoise_plan.total();
    plan->limit = memory_limit();
    BONSAI_TRY(plan_picture(rows, cols, plan->limit, &picture));
    plan->vae_tiled = picture.tight;
    plan->text_encoder_weights = streams(text_encoder_.weights(), text, plan->limit)
                                     ? text_encoder_.streamed_bytes()
                                     : text_encoder_.weights().bytes;
    plan->text_encoder_activations = text;
    plan->transformer_weights = streams(transformer_.weights(), denoise, plan->limit)
                                    ? transformer_.streamed_bytes()
                                    : transformer_.weights().bytes;
    plan->transformer_activations = denoise;
    plan->vae_weights = vae_.weights().bytes;
    plan->vae_activations = picture.bytes;
    plan->peak = std::max({plan->text_encoder_weights + text, plan->transformer_weights + denoise,
                           plan->vae_weights + picture.bytes});
    plan->fits = plan->peak <= plan->limit;
    return Status();
}

// Refuses what cannot work before any work is done. Weights are pages of the file that the system
// may drop and read again, so only activations must fit unless the caller set a limit.
Status Pipeline::check_limit(const std::string& what, const char* instead, uint64_t activations,
                             uint64_t with_weights, uint64_t limit) const {
    const bool set = options_.max_memory > 0;
    const uint64_t needed = set ? with_weights : activations;
    if (limit == 0 || needed <= limit) return Status();
    // Rounded up and down: never as if it were equal.
    return fail(ErrorCode::kMemory, "%s needs %llu MB, but %s is %llu MB; %s%s", what.c_str(),
                static_cast<unsigned long long>((needed + 999999) / 1000000),
                set ? "the limit" : "what is free",
                static_cast<unsigned long long>(limit / 1000000), instead,
                set ? "raise the limit" : "close other programs");
}

Status Pipeline::check_memory(const Request& request) const {
    bonsai_memory_plan plan{};
    BONSAI_TRY(plan_request(request, &plan));
    const bool several = request.images > 1;
    // All but the one in work wait for the last, in the memory of the process.
    const auto waiting =
        static_cast<uint64_t>((request.images - 1) * request.width * request.height * 3);
    const uint64_t drawn = backend_->keeps_memory() ? 0 : waiting;
    const std::string count =
        several ? format("%lld pictures of ", static_cast<long long>(request.images)) : "";
    return check_limit(count + format("%lldx%lld", static_cast<long long>(request.width),
                                      static_cast<long long>(request.height)),
                       several ? "draw fewer or smaller pictures or "
                               : "draw a smaller picture or ",
                       drawn + std::max({plan.text_encoder_activations,
                                         plan.transformer_activations, plan.vae_activations}),
                       drawn + plan.peak, plan.limit);
}

Status Pipeline::check_text_memory() const {
    StagePlan plan;
    BONSAI_TRY(plan_text(&plan));
    return check_limit("encoding a prompt", "", plan.total(),
                       text_encoder_.streamed_bytes() + plan.total(), memory_limit());
}

} // namespace bonsai
