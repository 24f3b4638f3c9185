// SPDX-License-Identifier: Apache-2.0
// The last stage of the pipeline: latents to pixels, in as much memory as there is.
#include <algorithm>

#include "model/monitor.h"

namespace bonsai {

namespace {

bool all_equal(const std::vector<uint8_t>& rgb) {
    return std::equal(rgb.begin() + 3, rgb.end(), rgb.begin());
}

} // namespace

// pixels: as the decoder gave them, only where all of rgb is one colour.
Status Pipeline::decode_latents(const std::vector<float>& tokens, int64_t height, int64_t width,
                                uint64_t budget, const Run& run, std::vector<uint8_t>* rgb,
                                std::vector<float>* pixels) const {
    std::vector<float> unpacked(static_cast<size_t>(height * width * config_.transformer.channels));
    vae_.unpack_tokens(tokens.data(), height, width, unpacked.data());
    Tensor latents, out;
    BONSAI_TRY(run.arena.allocate(4 * height * width, config_.vae.latent_channels, &latents));
    BONSAI_TRY(run.arena.allocate(height * width * kSizeMultiple * kSizeMultiple, 3, &out));
    BONSAI_TRY(run.backend.write(latents, unpacked.data()));
    BONSAI_TRY(run.show("latents_unpatchified", latents));
    BONSAI_TRY(vae_.decode(run, latents, 2 * height, 2 * width, budget, out));
    BONSAI_TRY(run.show("vae_out", out));
    rgb->resize(static_cast<size_t>(out.rows * 3));
    bool finite = true;
    BONSAI_TRY(run.backend.read_pixels(out, rgb->data(), &finite));
    if (!finite) return not_a_number(BONSAI_STAGE_VAE, "");
    if (!all_equal(*rgb)) return Status();
    pixels->resize(rgb->size());
    return run.backend.read(out, pixels->data());
}

Status Pipeline::decode(const std::vector<float>& latents, int64_t height, int64_t width,
                        Monitor& monitor, bool* in_strips, std::vector<uint8_t>* rgb) {
    PicturePlan plan;
    BONSAI_TRY(plan_picture(height, width, memory_limit(), &plan));
    *in_strips = plan.tight;
    std::vector<float> pixels;
    BONSAI_TRY(monitor.tick(0));
    {
        std::unique_ptr<Arena> arena;
        BONSAI_TRY(borrow_arena(plan.stage.arena, &arena));
        monitor.arena = std::max<uint64_t>(monitor.arena, plan.stage.arena);
        Run run{*backend_, *arena, [&](double fraction) { return monitor.tick(fraction); },
                nullptr};
        const auto& probe = monitor.request.probe;
        if (probe && monitor.image == 0)
            run.probe = [&](const std::string& name, const Tensor& value) {
                return probe(name, value, *backend_);
            };
        BONSAI_TRY(decode_latents(latents, height, width, plan.budget, run, rgb, &pixels));
    }
    return monitor.preview || pixels.empty() ? Status() : check_plain(latents, pixels, *rgb);
}

// How a picture is decoded within the limit (0: not known), and all that this takes beside the
// weights: arena, scratch, and the float and byte pictures on the host. Where memory stays taken
// between pictures, a third less is worth the twentieth of the time that the fastest way saves.
Status Pipeline::plan_picture(int64_t height, int64_t width, uint64_t limit,
                              PicturePlan* plan) const {
    const uint64_t host = static_cast<uint64_t>(height * width * kSizeMultiple * kSizeMultiple) *
                          (3 * sizeof(float) + 3);
    const auto try_budget = [&](uint64_t budget) {
        plan->budget = budget;
        BONSAI_TRY(plan_decode(height, width, budget, &plan->stage));
        plan->bytes = plan->stage.total() + host;
        return Status();
    };
    plan->tight = false;
    BONSAI_TRY(try_budget(VaeDecoder::kUnlimited));
    if (backend_->keeps_memory()) BONSAI_TRY(try_budget(plan->stage.arena / 3 * 2));
    if (limit == 0 || vae_.weights().bytes + plan->bytes <= limit) return Status();
    const uint64_t others = vae_.weights().bytes + plan->stage.scratch + host;
    plan->tight = true;
    return try_budget(limit > others ? limit - others : 0);
}

} // namespace bonsai
