// SPDX-License-Identifier: Apache-2.0
// Drawing pictures, and what can be done with a picture.
#include <cstdlib>
#include <vector>

#include "api/boundary.h"
#include "api/context.h"
#include "core/file_output.h"
#include "core/png.h"

using namespace bonsai;
using namespace bonsai::api;

namespace {

Status to_dtype(const char* name, int32_t value, bonsai_dtype* out) {
    if (value < BONSAI_DTYPE_F32 || value > BONSAI_DTYPE_BF16)
        return fail(ErrorCode::kArgument, "%s %d: expected a bonsai_dtype", name, value);
    *out = static_cast<bonsai_dtype>(value);
    return Status();
}

Status make_request(const bonsai_generate_params& p, Request* r) {
    BONSAI_TRY(require({{"prompt", p.prompt}}));
    r->prompt = p.prompt;
    r->width = p.width, r->height = p.height, r->steps = p.steps, r->images = p.images;
    r->guidance = p.guidance, r->shift = p.shift;
    BONSAI_TRY(to_dtype("noise_dtype", p.noise_dtype, &r->noise_dtype));
    BONSAI_TRY(to_dtype("timestep_dtype", p.timestep_dtype, &r->timestep_dtype));
    r->preview_every = p.preview_every;
    r->seed = p.seed;
    void* user = p.user;
    if (const bonsai_progress_callback call = p.on_progress)
        r->on_progress = [call, user](const bonsai_progress& progress) {
            return call(&progress, user) == 0;
        };
    if (const bonsai_step_callback call = p.on_step)
        r->on_step = [call, user](const bonsai_step& step) { return call(&step, user) == 0; };
    return Status();
}

Status image_out(const Picture& picture, bonsai_image* image) {
    image->width = static_cast<int32_t>(picture.width);
    image->height = static_cast<int32_t>(picture.height);
    image->seed = picture.seed;
    image->stats = picture.stats;
    BONSAI_TRY(copy_out(picture.rgb.data(), picture.rgb.size(), &image->rgb));
    return text_out(picture.metadata, &image->metadata);
}

Status check_image(const bonsai_image* image) {
    if (!image || !image->rgb || image->width <= 0 || image->height <= 0)
        return fail(ErrorCode::kArgument, "the image is empty");
    return Status();
}

Status to_png(const bonsai_image& image, std::vector<uint8_t>* out) {
    return encode_png(image.rgb, image.width, image.height, image.metadata ? image.metadata : "",
                      out);
}

} // namespace

extern "C" {

void bonsai_generate_params_init(bonsai_generate_params* params) {
    if (!params) return;
    *params = bonsai_generate_params{};
    params->struct_size = sizeof *params;
    params->images = 1;
    params->guidance = -1;
}

bonsai_status bonsai_generate(bonsai_context* ctx, const bonsai_generate_params* params,
                              bonsai_image* images) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"params", params}, {"images", images}}));
        bonsai_generate_params p;
        bonsai_generate_params_init(&p);
        BONSAI_TRY(take_over(params, &p));
        if (p.images < 1)
            return fail(ErrorCode::kArgument, "images %d: expected 1 or more", p.images);
        for (int32_t i = 0; i < p.images; ++i)
            images[i] = bonsai_image{};
        BONSAI_TRY(require({{"ctx", ctx}}));
        Request request;
        BONSAI_TRY(make_request(p, &request));
        Turn turn(ctx);
        BONSAI_TRY(turn.take());
        std::vector<Picture> pictures;
        BONSAI_TRY(ctx->pipeline->generate(request, &pictures));
        Status status;
        for (size_t i = 0; status.ok() && i < pictures.size(); ++i) {
            status = image_out(pictures[i], &images[i]);
            pictures[i] = {}; // two copies of one at a time
        }
        for (int32_t i = 0; !status.ok() && i < p.images; ++i)
            bonsai_image_free(&images[i]);
        return status;
    });
}

bonsai_status bonsai_plan_request(bonsai_context* ctx, const bonsai_generate_params* params,
                                  bonsai_memory_plan* plan) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"ctx", ctx}, {"params", params}, {"plan", plan}}));
        bonsai_generate_params p;
        bonsai_generate_params_init(&p);
        BONSAI_TRY(take_over(params, &p));
        p.prompt = ""; // of any prompt the same
        Request request;
        BONSAI_TRY(make_request(p, &request));
        const Visit visit(ctx);
        bonsai_memory_plan full{};
        BONSAI_TRY(ctx->pipeline->plan_memory(request, &full));
        return hand_over(full, plan);
    });
}

void bonsai_image_free(bonsai_image* image) {
    if (!image) return;
    std::free(image->rgb);
    std::free(image->metadata);
    *image = bonsai_image{};
}

bonsai_status bonsai_image_save_png(const bonsai_image* image, const char* path) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"path", path}}));
        BONSAI_TRY(check_image(image));
        std::vector<uint8_t> png;
        BONSAI_TRY(to_png(*image, &png));
        return write_file(path, png.data(), png.size());
    });
}

bonsai_status bonsai_image_encode_png(const bonsai_image* image, uint8_t** data, size_t* size) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"data", data}, {"size", size}}));
        BONSAI_TRY(check_image(image));
        std::vector<uint8_t> png;
        BONSAI_TRY(to_png(*image, &png));
        *size = png.size();
        return copy_out(png.data(), png.size(), data);
    });
}

bonsai_status bonsai_png_read_metadata(const char* path, char** metadata) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"path", path}, {"metadata", metadata}}));
        std::string text;
        BONSAI_TRY(read_png_metadata(path, &text));
        return text_out(text, metadata);
    });
}

} // extern "C"
