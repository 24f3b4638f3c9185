// SPDX-License-Identifier: Apache-2.0
// The last stage of the pipeline: latents to pixels, in as much memory as there is.
#include <algorithm>

#include "core/half.h"
#include "model/monitor.h"

namespace bonsai {

namespace {

// From [-1, 1], halves to even as numpy rounds. Behind a sum of 1.5 * 2^23 and a number below 256
// the low byte is the number rounded; unlike std::nearbyint, compilers make vectors of it.
uint8_t to_byte(float pixel) {
    const float value = std::min(1.0f, std::max(0.0f, pixel / 2.0f + 0.5f));
    return static_cast<uint8_t>(f32_bits(value * 255.0f + 12582912.0f));
}

} // namespace

Status Pipeline::decode_latents(const std::vector<float>& tokens, int64_t height, int64_t width,
                                uint64_t budget, const Run& run, std::vector<float>* pixels) const {
    std::vector<float> unpacked(static_cast<size_t>(height * width * config_.transformer.channels));
    vae_.unpack_tokens(tokens.data(), height, width, unpacked.data());
    Tensor latents, out;
    BONSAI_TRY(run.arena.allocate(4 * height * width, config_.vae.latent_channels, &latents));
    BONSAI_TRY(run.arena.allocate(height * width * kSizeMultiple * kSizeMultiple, 3, &out));
    BONSAI_TRY(run.backend.write(latents, unpacked.data()));
    BONSAI_TRY(run.show("latents_unpatchified", latents));
    BONSAI_TRY(vae_.decode(run, latents, 2 * height, 2 * width, budget, out));
    BONSAI_TRY(run.show("vae_out", out));
    pixels->resize(static_cast<size_t>(out.rows * 3));
    return run.backend.read(out, pixels->data());
}

Status Pipeline::decode(const std::vector<float>& latents, int64_t height, int64_t width,
                        Monitor& monitor, bool* in_strips, std::vector<uint8_t>* rgb) {
    PicturePlan plan;
    BONSAI_TRY(plan_picture(height, width, memory_limit(), &plan));
    *in_strips = plan.budget != VaeDecoder::kUnlimited;
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
        BONSAI_TRY(decode_latents(latents, height, width, plan.budget, run, &pixels));
    }
    BONSAI_TRY(check_numbers(pixels.data(), pixels.size(), BONSAI_STAGE_VAE, ""));
    rgb->resize(pixels.size());
    for (size_t i = 0; i < pixels.size(); ++i)
        (*rgb)[i] = to_byte(pixels[i]);
    return monitor.preview ? Status() : check_picture(latents, pixels, *rgb);
}

// How a picture is decoded within the limit (0: not known), and all that this takes beside the
// weights: arena, scratch, and the float and byte pictures on the host.
Status Pipeline::plan_picture(int64_t height, int64_t width, uint64_t limit,
                              PicturePlan* plan) const {
    const uint64_t host = static_cast<uint64_t>(height * width * kSizeMultiple * kSizeMultiple) *
                          (3 * sizeof(float) + 3);
    plan->budget = VaeDecoder::kUnlimited;
    BONSAI_TRY(plan_decode(height, width, plan->budget, &plan->stage));
    plan->bytes = plan->stage.total() + host;
    if (limit == 0 || vae_.weights().bytes + plan->bytes <= limit) return Status();
    const uint64_t others = vae_.weights().bytes + plan->stage.scratch + host;
    plan->budget = limit > others ? limit - others : 0;
    BONSAI_TRY(plan_decode(height, width, plan->budget, &plan->stage));
    plan->bytes = plan->stage.total() + host;
    return Status();
}

} // namespace bonsai
