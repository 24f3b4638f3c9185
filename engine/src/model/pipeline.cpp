// SPDX-License-Identifier: Apache-2.0
#include "model/pipeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/sha256.h"
#include "model/denoising.h"
#include "model/monitor.h"

namespace bonsai {

namespace {

constexpr int64_t kMaxSteps = 1000;
constexpr int64_t kMaxImages = 4096;

// Identifies the weights: over names, types, shapes and the tensor hashes that the converter
// stored.
std::string model_hash(const GgufFile& file) {
    std::vector<std::string_view> hashes;
    if (!file.get("bonsai.tensor_sha256", &hashes).ok()) hashes.clear();
    Sha256 sha;
    for (size_t i = 0; i < file.tensors().size(); ++i) {
        const GgufTensor& t = file.tensors()[i];
        const std::string line = format(
            "%.*s %u %llu %llu %llu %llu ", static_cast<int>(t.name.size()), t.name.data(),
            t.type_id, static_cast<unsigned long long>(t.ne[0]),
            static_cast<unsigned long long>(t.ne[1]), static_cast<unsigned long long>(t.ne[2]),
            static_cast<unsigned long long>(t.ne[3]));
        sha.update(line.data(), line.size());
        if (i < hashes.size()) sha.update(hashes[i].data(), hashes[i].size());
    }
    return sha.hex();
}

} // namespace

Status load_tokenizer(const GgufFile& file, std::unique_ptr<Tokenizer>* out) {
    TokenizerData data;
    std::vector<int64_t> types;
    int64_t pad = 0;
    BONSAI_TRY(file.get("tokenizer.ggml.tokens", &data.tokens));
    BONSAI_TRY(file.get("tokenizer.ggml.token_type", &types));
    BONSAI_TRY(file.get("tokenizer.ggml.merges", &data.merges));
    BONSAI_TRY(file.get("tokenizer.ggml.padding_token_id", &pad));
    if (pad < 0 || static_cast<size_t>(pad) >= data.tokens.size())
        return fail(ErrorCode::kFormat,
                    "%s: tokenizer.ggml.padding_token_id is %lld, but there are %zu tokens",
                    file.file().path().c_str(), static_cast<long long>(pad), data.tokens.size());
    for (const int64_t type : types) // what has no 32 bits is as unknown as -1
        data.types.push_back(type == static_cast<int32_t>(type) ? static_cast<int32_t>(type) : -1);
    data.pad_id = static_cast<int32_t>(pad);
    const Status status = Tokenizer::create(data, out);
    if (status.ok()) return status;
    return fail(status.code(), "%s: %s", file.file().path().c_str(), status.message().c_str());
}

Status Pipeline::open(const std::string& path, const PipelineOptions& options,
                      std::unique_ptr<Pipeline>* out) {
    std::unique_ptr<GgufFile> file;
    std::unique_ptr<Backend> backend;
    BONSAI_TRY(GgufFile::open(path, &file));
    BackendOptions device = options.backend;
    device.max_memory = options.max_memory;
    BONSAI_TRY(create_backend(options.device, device, &backend));
    return open(std::move(file), std::move(backend), options, out);
}

Status Pipeline::open(std::unique_ptr<GgufFile> mapped, std::unique_ptr<Backend> backend,
                      const PipelineOptions& options, std::unique_ptr<Pipeline>* out) {
    std::unique_ptr<Pipeline> pipeline(new Pipeline);
    pipeline->options_ = options;
    pipeline->file_ = std::move(mapped);
    pipeline->backend_ = std::move(backend);
    pipeline->backend_->stop_when(&pipeline->cancelled_);
    const GgufFile& file = *pipeline->file_;
    BONSAI_TRY(read_config(file, &pipeline->config_));
    pipeline->hash_ = model_hash(file);
    BONSAI_TRY(load_tokenizer(file, &pipeline->tokenizer_));
    if (pipeline->tokenizer_->vocab_size() > pipeline->config_.text.vocab_size)
        return fail(ErrorCode::kFormat, "%s: %d tokens, but an embedding of %lld rows",
                    file.file().path().c_str(), pipeline->tokenizer_->vocab_size(),
                    static_cast<long long>(pipeline->config_.text.vocab_size));
    WeightLoader loader(file, *pipeline->backend_);
    BONSAI_TRY(pipeline->load(loader));
    BONSAI_TRY(pipeline->check_ops());
    BONSAI_TRY(file.file().check()); // vectors have been copied from it
    *out = std::move(pipeline);
    return Status();
}

Status Pipeline::load(WeightLoader& loader) {
    BONSAI_TRY(text_encoder_.load(config_.text, loader));
    BONSAI_TRY(transformer_.load(config_.transformer, loader));
    BONSAI_TRY(vae_.load(config_.vae, loader));
    return loader.check_all_used({"vae.encoder.", "vae.quant_conv."}); // these may stand there
}

// Runs all stages on paper, so that weights which no op takes (a packed convolution, an address
// that is not aligned) are refused now and not in the middle of a picture.
Status Pipeline::check_ops() const {
    bonsai_memory_plan plan{};
    const Status status = plan_memory(kSizeMultiple, kSizeMultiple, &plan);
    return status.ok() ? status
                       : fail(ErrorCode::kFormat,
                              "%s: the model cannot be computed: %s; convert the checkpoint again",
                              file_->file().path().c_str(), status.message().c_str());
}

// Fills in defaults and checks what the caller asked for.
Status Pipeline::resolve(Request* r) const {
    const auto fall_back = [](int64_t* value, int64_t fallback) {
        *value = *value > 0 ? *value : fallback;
    };
    for (const auto& [name, side] :
         {std::pair("width", r->width), std::pair("height", r->height)}) {
        if (side >= 0 && side <= kMaxSide && side % kSizeMultiple == 0) continue;
        const int64_t nearest = std::clamp(
            (side + kSizeMultiple / 2) / kSizeMultiple * kSizeMultiple, kSizeMultiple, kMaxSide);
        return fail(
            ErrorCode::kArgument,
            "%s %lld: expected one of the multiples of %lld from %lld to %lld; the nearest is %lld",
            name, static_cast<long long>(side), static_cast<long long>(kSizeMultiple),
            static_cast<long long>(kSizeMultiple), static_cast<long long>(kMaxSide),
            static_cast<long long>(nearest));
    }
    fall_back(&r->width, config_.default_width / kSizeMultiple * kSizeMultiple);
    fall_back(&r->height, config_.default_height / kSizeMultiple * kSizeMultiple);
    if (r->steps < 0 || r->steps > kMaxSteps)
        return fail(ErrorCode::kArgument, "steps %lld: expected 1 to %lld (0: the model's %lld)",
                    static_cast<long long>(r->steps), static_cast<long long>(kMaxSteps),
                    static_cast<long long>(config_.default_steps));
    fall_back(&r->steps, config_.default_steps);
    if (r->images < 1 || r->images > kMaxImages)
        return fail(ErrorCode::kArgument, "images %lld: expected 1 to %lld",
                    static_cast<long long>(r->images), static_cast<long long>(kMaxImages));
    if (!std::isfinite(r->guidance) || !std::isfinite(r->shift) || r->shift < 0)
        return fail(ErrorCode::kArgument,
                    "guidance %g, shift %g: expected finite numbers, shift not negative",
                    static_cast<double>(r->guidance), static_cast<double>(r->shift));
    for (const bonsai_dtype dtype : {r->noise_dtype, r->timestep_dtype}) {
        if (dtype < BONSAI_DTYPE_F32 || dtype > BONSAI_DTYPE_BF16)
            return fail(ErrorCode::kArgument,
                        "noise_dtype or timestep_dtype %d: expected a bonsai_dtype",
                        static_cast<int>(dtype));
    }
    if (config_.distilled) {
        if (r->guidance > 1 && options_.log)
            options_.log(format("guidance %g is ignored: this model is distilled",
                                static_cast<double>(r->guidance)));
        r->guidance = 1;
    } else if (r->guidance < 0) {
        r->guidance = config_.default_guidance;
    }
    return Status();
}

// `count` pictures of encoded_ and their start noise.
Status Pipeline::draw(const Request& request, std::vector<float> noise, Monitor& monitor,
                      Picture* pictures, size_t count) {
    const int64_t height = request.height / kSizeMultiple, width = request.width / kSizeMultiple;
    std::vector<float> latents;
    monitor.enter(BONSAI_STAGE_DENOISE);
    BONSAI_TRY(denoise(request, static_cast<int64_t>(count), std::move(noise), monitor, &latents));
    monitor.leave(count);
    if (monitor.image + static_cast<int64_t>(count) == request.images)
        evict(transformer_.weights());
    const auto size = static_cast<std::ptrdiff_t>(latents.size() / count);
    for (size_t i = 0; i < count; ++i) {
        Picture& picture = pictures[i];
        picture.width = request.width;
        picture.height = request.height;
        const auto begin = latents.begin() + static_cast<std::ptrdiff_t>(i) * size;
        bool in_strips = false;
        monitor.enter(BONSAI_STAGE_VAE);
        BONSAI_TRY(decode({begin, begin + size}, height, width, monitor, &in_strips, &picture.rgb));
        monitor.leave();
        picture.metadata = metadata(request, picture.seed, schedule(request));
        picture.stats = monitor.stats();
        picture.stats.prompt_tokens = encoded_[0]->tokens;
        picture.stats.prompt_truncated = encoded_[0]->truncated;
        picture.stats.vae_tiled = in_strips;
        monitor.next_image();
    }
    return Status();
}

Status Pipeline::draw_all(const Request& request, std::vector<Picture>* out) {
    Monitor monitor(cancelled_, file_->file(), *backend_, request);
    std::vector<Picture> pictures(static_cast<size_t>(request.images));
    for (size_t i = 0; i < pictures.size(); ++i)
        pictures[i].seed = request.seed + i;
    const auto batch = static_cast<size_t>(choose_batch(request));
    std::vector<std::future<std::vector<float>>> ahead; // noise of the next batch
    const auto begin_batch = [&](size_t first) {
        ahead.clear();
        for (size_t i = first; i < std::min(first + batch, pictures.size()); ++i)
            ahead.push_back(begin_noise(request, pictures[i].seed));
    };
    begin_batch(0);
    monitor.enter(BONSAI_STAGE_TEXT_ENCODER);
    BONSAI_TRY(encode_all(request, monitor));
    monitor.leave();
    for (size_t first = 0; first < pictures.size(); first += batch) {
        std::vector<float> noise;
        for (auto& one : ahead) {
            const std::vector<float> tokens = one.get();
            noise.insert(noise.end(), tokens.begin(), tokens.end());
        }
        const size_t count = ahead.size();
        begin_batch(first + count);
        BONSAI_TRY(draw(request, std::move(noise), monitor, &pictures[first], count));
    }
    *out = std::move(pictures);
    return Status();
}

Status Pipeline::generate(const Request& asked, std::vector<Picture>* out) {
    Request request = asked;
    BONSAI_TRY(resolve(&request));
    BONSAI_TRY(check_memory(request));
    BONSAI_TRY(reserve(request));
    const Eviction after{*this,
                         {&text_encoder_.weights(), &transformer_.weights(), &vae_.weights()}};
    const Status status = draw_all(request, out);
    if (status.code() == ErrorCode::kCancelled) return status;
    const Status file = file_->file().check(); // the cause of all other failures, if it fails
    return file.ok() ? status : file;
}

} // namespace bonsai
