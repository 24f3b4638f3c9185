// SPDX-License-Identifier: Apache-2.0
// The C ABI: checks arguments, keeps exceptions inside, forwards to the pipeline.
#include "bonsai.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include "core/describe.h"
#include "core/file_output.h"
#include "core/png.h"
#include "core/rng.h"
#include "model/pipeline.h"
#include "selftest/self_test.h"

using bonsai::ErrorCode;
using bonsai::fail;
using bonsai::Pipeline;
using bonsai::Request;
using bonsai::Status;

struct bonsai_context {
    std::unique_ptr<Pipeline> pipeline;
    mutable std::mutex mutex; // guards what follows
    mutable std::condition_variable changed;
    mutable int calls = 0; // that are inside, waiting ones included: close waits for all
    bool busy = false;     // one of them computes
    std::thread::id owner; // the thread that does
    bool closing = false;
    bool orphaned = false; // closed from a callback: the last call inside releases it
};

namespace {

// An array, since an object with a destructor would have to be registered in each thread, which
// takes memory and ends the process when there is none.
thread_local char last_error[4096] = "";

// Copies text into an array, cut where it does not fit but not in the middle of a character.
template <size_t N> void set_text(char (&to)[N], const std::string& from) noexcept {
    size_t length = std::min(from.size(), N - 1);
    while (length > 0 && length < from.size() && (from[length] & 0xc0) == 0x80)
        --length;
    std::memcpy(to, from.data(), length);
    to[length] = 0;
}

// Runs body, turns exceptions into statuses and remembers the message.
template <typename Body> bonsai_status guarded(const Body& body) {
    Status status;
    try {
        status = body();
    } catch (...) {
        status = bonsai::caught();
    }
    if (!status.ok()) set_text(last_error, status.message());
    return static_cast<bonsai_status>(status.code());
}

Status missing(const char* what) {
    return fail(ErrorCode::kArgument, "%s is NULL", what);
}

// Keeps the context alive during one call. The last one releases a context that was closed inside.
class Visit {
  public:
    explicit Visit(const bonsai_context* ctx) : ctx_(ctx) {
        const std::lock_guard<std::mutex> lock(ctx_->mutex);
        ++ctx_->calls;
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    ~Visit() {
        bool last = false;
        {
            const std::lock_guard<std::mutex> lock(ctx_->mutex);
            --ctx_->calls;
            last = ctx_->orphaned && ctx_->calls == 0;
            ctx_->changed.notify_all(); // under the lock: close may delete as soon as it is free
        }
        if (last) delete ctx_;
    }

  private:
    const bonsai_context* ctx_;
};

// Holds the context for one computation; refuses a callback that calls back.
class Turn {
  public:
    explicit Turn(bonsai_context* ctx) : visit_(ctx), ctx_(ctx) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
        if (!held_) return;
        const std::lock_guard<std::mutex> lock(ctx_->mutex);
        ctx_->busy = false;
        ctx_->owner = std::thread::id();
        ctx_->changed.notify_all();
    }
    Status take() {
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

  private:
    Visit visit_;
    bonsai_context* ctx_;
    bool held_ = false;
};

// Structs that callers own may be older and shorter than ours: fill a full one, copy what they have
// room for.
template <typename T> Status hand_over(const T& full, T* out) {
    const uint32_t size = out->struct_size;
    if (size < sizeof(uint32_t))
        return fail(ErrorCode::kArgument, "struct_size is %u; set it to sizeof the struct", size);
    std::memcpy(out, &full, std::min<size_t>(size, sizeof full));
    out->struct_size = size;
    return Status();
}

// The caller's parameters over the defaults of this version.
template <typename T> Status take_over(const T* from, T* full) {
    if (from->struct_size < sizeof(uint32_t) || from->struct_size > 4096)
        return fail(ErrorCode::kArgument,
                    "struct_size is %u; call the struct's _init function first", from->struct_size);
    std::memcpy(full, from, std::min<size_t>(from->struct_size, sizeof *full));
    return Status();
}

Status copy_out(const void* data, size_t size, size_t room, void** out) {
    auto* copy = static_cast<uint8_t*>(std::malloc(room));
    if (!copy) return Status(ErrorCode::kMemory, "out of memory");
    std::memcpy(copy, data, size);
    std::memset(copy + size, 0, room - size);
    *out = copy;
    return Status();
}

Status text_out(const std::string& text, char** out) {
    return copy_out(text.data(), text.size(), text.size() + 1, reinterpret_cast<void**>(out));
}

Status to_dtype(const char* name, int32_t value, bonsai_dtype* out) {
    if (value < BONSAI_DTYPE_F32 || value > BONSAI_DTYPE_BF16)
        return fail(ErrorCode::kArgument, "%s %d: expected a bonsai_dtype", name, value);
    *out = static_cast<bonsai_dtype>(value);
    return Status();
}

Status make_request(const bonsai_generate_params& p, Request* r) {
    if (!p.prompt) return missing("prompt");
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

Status image_out(const bonsai::Picture& picture, bonsai_image* image) {
    image->width = static_cast<int32_t>(picture.width);
    image->height = static_cast<int32_t>(picture.height);
    image->seed = picture.seed;
    image->stats = picture.stats;
    BONSAI_TRY(copy_out(picture.rgb.data(), picture.rgb.size(), picture.rgb.size(),
                        reinterpret_cast<void**>(&image->rgb)));
    return text_out(picture.metadata, &image->metadata);
}

Status check_image(const bonsai_image* image) {
    if (!image || !image->rgb || image->width <= 0 || image->height <= 0)
        return fail(ErrorCode::kArgument, "the image is empty");
    return Status();
}

Status encode_png(const bonsai_image& image, std::vector<uint8_t>* out) {
    return bonsai::encode_png(image.rgb, image.width, image.height,
                              image.metadata ? image.metadata : "", out);
}

// The caller's parameters, which may be NULL, and where and how they want to compute.
Status open_options(const bonsai_open_params* params, bonsai_open_params* p,
                    bonsai::PipelineOptions* options) {
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
    options->backend.precision = p->precision == BONSAI_PRECISION_EXACT ? bonsai::Precision::kExact
                                                                        : bonsai::Precision::kFast;
    return Status();
}

} // namespace

extern "C" {

const char* bonsai_version(void) {
    return BONSAI_VERSION;
}
uint32_t bonsai_abi_version(void) {
    return BONSAI_ABI_VERSION;
}
const char* bonsai_last_error(void) {
    return last_error;
}
void bonsai_free(void* data) {
    std::free(data);
}

const char* bonsai_status_text(bonsai_status status) {
    switch (status) {
    case BONSAI_OK:
        return "ok";
    case BONSAI_ERR_ARGUMENT:
        return "invalid argument";
    case BONSAI_ERR_IO:
        return "input or output error";
    case BONSAI_ERR_FORMAT:
        return "invalid file";
    case BONSAI_ERR_UNSUPPORTED:
        return "not supported";
    case BONSAI_ERR_MEMORY:
        return "out of memory";
    case BONSAI_ERR_CANCELLED:
        return "cancelled";
    case BONSAI_ERR_INTERNAL:
        return "internal error";
    }
    return "unknown status";
}

int32_t bonsai_device_count(void) {
    int32_t count = 0;
    (void)guarded([&] {
        count = static_cast<int32_t>(bonsai::list_devices().size());
        return Status();
    });
    return count;
}

bonsai_status bonsai_device_get_info(int32_t index, bonsai_device_info* info) {
    return guarded([&]() -> Status {
        if (!info) return missing("info");
        const std::vector<bonsai::DeviceInfo> devices = bonsai::list_devices();
        if (index < 0 || static_cast<size_t>(index) >= devices.size())
            return fail(ErrorCode::kArgument, "device %d: there are %zu", index, devices.size());
        const bonsai::DeviceInfo& device = devices[static_cast<size_t>(index)];
        bonsai_device_info full{};
        full.threads = device.threads;
        full.memory_total = device.memory_total;
        full.memory_free = device.memory_free;
        set_text(full.id, device.id);
        set_text(full.name, device.name);
        set_text(full.features, device.features);
        return hand_over(full, info);
    });
}

void bonsai_open_params_init(bonsai_open_params* params) {
    *params = bonsai_open_params{};
    params->struct_size = sizeof *params;
}

bonsai_status bonsai_open(const char* path, const bonsai_open_params* params,
                          bonsai_context** ctx) {
    return guarded([&]() -> Status {
        if (!ctx) return missing("ctx");
        *ctx = nullptr;
        if (!path) return missing("path");
        bonsai_open_params p;
        bonsai::PipelineOptions options;
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
        if (!ctx || !info) return missing(ctx ? "info" : "ctx");
        const Visit visit(ctx);
        const Pipeline& pipeline = *ctx->pipeline;
        const bonsai::Config& config = pipeline.config();
        bonsai_model_info full{};
        full.default_width = static_cast<int32_t>(config.default_width);
        full.default_height = static_cast<int32_t>(config.default_height);
        full.default_steps = static_cast<int32_t>(config.default_steps);
        full.default_guidance = config.default_guidance;
        full.distilled = config.distilled;
        full.max_tokens = static_cast<int32_t>(config.text.max_tokens);
        full.prompt_width = static_cast<int32_t>(config.text.prompt_width());
        full.size_multiple = static_cast<int32_t>(bonsai::kSizeMultiple);
        full.tensors = static_cast<int32_t>(pipeline.file().tensors().size());
        full.file_bytes = pipeline.file().file().size();
        full.transformer_bytes = pipeline.transformer().weights().bytes;
        full.text_encoder_bytes = pipeline.text_encoder().weights().bytes;
        full.vae_bytes = pipeline.vae().weights().bytes;
        for (const bonsai::GgufTensor& tensor : pipeline.file().tensors())
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

void bonsai_generate_params_init(bonsai_generate_params* params) {
    *params = bonsai_generate_params{};
    params->struct_size = sizeof *params;
    params->images = 1;
    params->guidance = -1;
}

bonsai_status bonsai_generate(bonsai_context* ctx, const bonsai_generate_params* params,
                              bonsai_image* images) {
    return guarded([&]() -> Status {
        if (!params || !images) return missing(params ? "images" : "params");
        bonsai_generate_params p;
        bonsai_generate_params_init(&p);
        BONSAI_TRY(take_over(params, &p));
        if (p.images < 1)
            return fail(ErrorCode::kArgument, "images %d: expected 1 or more", p.images);
        for (int32_t i = 0; i < p.images; ++i)
            images[i] = bonsai_image{};
        if (!ctx) return missing("ctx");
        Request request;
        BONSAI_TRY(make_request(p, &request));
        Turn turn(ctx);
        BONSAI_TRY(turn.take());
        std::vector<bonsai::Picture> pictures;
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

void bonsai_cancel(bonsai_context* ctx) {
    if (ctx) ctx->pipeline->cancel();
}

void bonsai_image_free(bonsai_image* image) {
    if (!image) return;
    std::free(image->rgb);
    std::free(image->metadata);
    *image = bonsai_image{};
}

bonsai_status bonsai_image_save_png(const bonsai_image* image, const char* path) {
    return guarded([&]() -> Status {
        if (!path) return missing("path");
        BONSAI_TRY(check_image(image));
        std::vector<uint8_t> png;
        BONSAI_TRY(encode_png(*image, &png));
        return bonsai::write_file(path, png.data(), png.size());
    });
}

bonsai_status bonsai_image_encode_png(const bonsai_image* image, uint8_t** data, size_t* size) {
    return guarded([&]() -> Status {
        if (!data || !size) return missing(data ? "size" : "data");
        BONSAI_TRY(check_image(image));
        std::vector<uint8_t> png;
        BONSAI_TRY(encode_png(*image, &png));
        *size = png.size();
        return copy_out(png.data(), png.size(), png.size(), reinterpret_cast<void**>(data));
    });
}

bonsai_status bonsai_png_read_metadata(const char* path, char** metadata) {
    return guarded([&]() -> Status {
        if (!path || !metadata) return missing(path ? "metadata" : "path");
        std::string text;
        BONSAI_TRY(bonsai::read_png_metadata(path, &text));
        return text_out(text, metadata);
    });
}

bonsai_status bonsai_prompt_tokenize(bonsai_context* ctx, const char* prompt, int32_t* ids,
                                     int32_t capacity, int32_t* count) {
    return guarded([&]() -> Status {
        if (!ctx || !prompt || !count || (!ids && capacity > 0))
            return missing(!ctx ? "ctx" : !prompt ? "prompt" : !count ? "count" : "ids");
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
        if (!ctx || !prompt || !out) return missing(!ctx ? "ctx" : !prompt ? "prompt" : "out");
        Turn turn(ctx);
        const bonsai::TextEncoderConfig& text = ctx->pipeline->config().text;
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
        if (!ctx || !prompt || !path) return missing(!ctx ? "ctx" : !prompt ? "prompt" : "path");
        Turn turn(ctx);
        BONSAI_TRY(turn.take());
        return ctx->pipeline->save_embeds(prompt, path);
    });
}

bonsai_status bonsai_embeds_load(bonsai_context* ctx, const char* path, char** prompt) {
    return guarded([&]() -> Status {
        if (!ctx || !path || !prompt) return missing(!ctx ? "ctx" : !path ? "path" : "prompt");
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
        if (!out) return missing("out");
        if (count < 16)
            return fail(ErrorCode::kArgument, "count is %zu, expected at least 16", count);
        bonsai::torch_cpu_randn(seed, out, count);
        return Status();
    });
}

bonsai_status bonsai_plan_memory(bonsai_context* ctx, int32_t width, int32_t height,
                                 bonsai_memory_plan* plan) {
    return guarded([&]() -> Status {
        if (!ctx || !plan) return missing(ctx ? "plan" : "ctx");
        const Visit visit(ctx);
        bonsai_memory_plan full{};
        BONSAI_TRY(ctx->pipeline->plan_memory(width, height, &full));
        return hand_over(full, plan);
    });
}

bonsai_status bonsai_self_test(const bonsai_open_params* params, int32_t json, char** report,
                               int32_t* failures) {
    return guarded([&]() -> Status {
        bonsai_open_params p;
        bonsai::PipelineOptions options;
        BONSAI_TRY(open_options(params, &p, &options));
        bonsai::SelfTestReport found;
        BONSAI_TRY(bonsai::run_self_test(
            [&](bonsai::Precision precision, std::unique_ptr<bonsai::Backend>* out) {
                return bonsai::create_backend(options.device, {options.backend.threads, precision},
                                              out);
            },
            &found));
        if (failures) *failures = found.failures();
        if (!report) return Status();
        return text_out(json ? bonsai::self_test_json(found) : bonsai::self_test_text(found),
                        report);
    });
}

bonsai_status bonsai_file_describe(const char* path, int32_t json, char** text) {
    return guarded([&]() -> Status {
        if (!path || !text) return missing(path ? "text" : "path");
        std::unique_ptr<bonsai::GgufFile> file;
        BONSAI_TRY(bonsai::GgufFile::open(path, &file));
        return text_out(json ? bonsai::describe_json(*file) : bonsai::describe_text(*file), text);
    });
}

bonsai_status bonsai_file_verify(const char* path, bonsai_verify_callback callback, void* user) {
    return guarded([&]() -> Status {
        if (!path) return missing("path");
        std::unique_ptr<bonsai::GgufFile> file;
        BONSAI_TRY(bonsai::GgufFile::open(path, &file));
        return bonsai::verify_hashes(*file, [&](double fraction, std::string_view tensor) {
            if (callback && callback(fraction, std::string(tensor).c_str(), user) != 0)
                return fail(ErrorCode::kCancelled, "stopped by the callback");
            return Status();
        });
    });
}

} // extern "C"
