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
// Encoded prompts that are kept; one of the largest model has 16 MB.
constexpr size_t kRecentBytes = 64u << 20;

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

// The template and the prompt are tokenised as one text: pieces on both sides of a seam may merge.
// The prompt is checked alone, so that a message counts bytes from its beginning.
Status Pipeline::templated(const std::string& prompt, std::string* text) const {
    BONSAI_TRY(Tokenizer::check_text(prompt));
    *text = config_.prompt_prefix + prompt + config_.prompt_suffix;
    return Status();
}

Status Pipeline::tokenize(const std::string& prompt, std::vector<int32_t>* ids) const {
    std::string text;
    BONSAI_TRY(templated(prompt, &text));
    BONSAI_TRY(tokenizer_->encode(text, ids));
    if (ids->size() > static_cast<size_t>(config_.text.max_tokens))
        ids->resize(static_cast<size_t>(config_.text.max_tokens));
    return Status();
}

// With `left` the rows stay on the device, in *left, if there is room behind the arenas.
Status Pipeline::encode(const std::string& prompt, Monitor& monitor, double first, double share,
                        Prompt* out, Tensor* left) {
    std::string text;
    std::vector<int32_t> ids;
    BONSAI_TRY(templated(prompt, &text));
    BONSAI_TRY(tokenizer_->encode_padded(text, static_cast<int32_t>(config_.text.max_tokens), &ids,
                                         &out->tokens, &out->truncated));
    if (out->truncated && options_.log)
        options_.log(format("the prompt is longer than %lld tokens and was cut on the right",
                            static_cast<long long>(config_.text.max_tokens)));
    StagePlan plan;
    BONSAI_TRY(plan_text(&plan));
    std::unique_ptr<Arena> arena;
    BONSAI_TRY(borrow_arena(plan.arena, &arena));
    monitor.arena = std::max<uint64_t>(monitor.arena, plan.arena);
    const auto& probe = monitor.request.probe;
    const Run run{
        *backend_, *arena, [&](double fraction) { return monitor.tick(first + share * fraction); },
        probe && first == 0 ? [&](const std::string& name,
                                  const Tensor& value) { return probe(name, value, *backend_); }
                            : std::function<Status(const std::string&, const Tensor&)>(),
        streams(text_encoder_.weights(), plan.total())};
    BONSAI_TRY(run.progress(0));
    Tensor rows;
    const bool stays = left && end_of_workspace(&rows);
    if (!stays)
        BONSAI_TRY(arena->allocate(config_.text.max_tokens, config_.text.prompt_width(), &rows));
    BONSAI_TRY(text_encoder_.encode(run, ids.data(), out->tokens, rows));
    BONSAI_TRY(run.show("prompt_embeds", rows));
    out->text = prompt;
    out->rows.resize(static_cast<size_t>(rows.rows * rows.cols));
    if (stays) {
        *left = rows;
        return backend_->synchronize();
    }
    BONSAI_TRY(backend_->read(rows, out->rows.data()));
    BONSAI_TRY(file_->file().check());
    return check_numbers(out->rows.data(), out->rows.size(), BONSAI_STAGE_TEXT_ENCODER, "");
}

// Gives weights back to the system when a block ends, be it by an error or an exception.
struct Pipeline::Eviction {
    const Pipeline& pipeline;
    std::vector<const WeightSet*> sets;
    ~Eviction() {
        for (const WeightSet* set : sets)
            pipeline.evict(*set);
    }
};

// Outside of a picture.
Status Pipeline::encode_one(const std::string& prompt, Prompt* out) {
    BONSAI_TRY(check_text_memory());
    const Request request;
    Monitor monitor(cancelled_, file_->file(), *backend_, request);
    const Eviction after{*this, {&text_encoder_.weights()}};
    return encode(prompt, monitor, 0, 1, out);
}

Status Pipeline::encode_prompt(const std::string& prompt, std::vector<float>* out) {
    Prompt encoded;
    BONSAI_TRY(encode_one(prompt, &encoded));
    out->assign(encoded.rows.begin(), encoded.rows.end());
    return Status();
}

// The prompt and, with guidance, the empty prompt beside it, into encoded_: from recent_ where it
// is there, except for a probe, which wants to see the encoder at work.
Status Pipeline::encode_all(const Request& request, Monitor& monitor) {
    std::vector<std::string> texts = {request.prompt};
    if (request.guidance > 1) texts.push_back("");
    encoded_.clear();
    pending_ = {};
    const Eviction after{*this, {&text_encoder_.weights()}};
    const double share = 1.0 / static_cast<double>(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
        std::shared_ptr<const Prompt> prompt = take_recent(texts[i]);
        if (!prompt || request.probe) {
            const auto made = std::make_shared<Prompt>();
            Tensor left;
            BONSAI_TRY(encode(texts[i], monitor, static_cast<double>(i) * share, share, made.get(),
                              texts.size() == 1 && !request.probe ? &left : nullptr));
            prompt = made;
            if (!left.empty()) pending_ = {made, left};
        }
        encoded_.push_back(prompt);
        if (!pending_.prompt) remember(prompt);
    }
    return Status();
}

// What encode left on the device.
Status Pipeline::fetch_pending() {
    const Pending pending = std::move(pending_);
    pending_ = {};
    RawVector<float>& rows = pending.prompt->rows;
    BONSAI_TRY(backend_->read_beside(pending.rows, rows.data()));
    BONSAI_TRY(file_->file().check());
    BONSAI_TRY(check_numbers(rows.data(), rows.size(), BONSAI_STAGE_TEXT_ENCODER, ""));
    remember(pending.prompt);
    return Status();
}

// The encoded prompt if it is among the last used, where it is no more then.
std::shared_ptr<const Prompt> Pipeline::take_recent(const std::string& text) {
    const auto known = std::find_if(recent_.begin(), recent_.end(),
                                    [&](const auto& prompt) { return prompt->text == text; });
    if (known == recent_.end()) return nullptr;
    const std::shared_ptr<const Prompt> prompt = *known;
    recent_.erase(known);
    return prompt;
}

// A prompt and, with guidance, the empty one are kept whatever their size.
void Pipeline::remember(const std::shared_ptr<const Prompt>& prompt) {
    recent_.insert(recent_.begin(), prompt);
    const size_t bytes = prompt->rows.size() * sizeof(float);
    recent_.resize(std::min(recent_.size(), std::max<size_t>(2, kRecentBytes / bytes)));
}

EmbedsShape Pipeline::embeds_shape() const {
    return {hash_, config_.text.max_tokens, config_.text.prompt_width()};
}

Status Pipeline::save_embeds(const std::string& text, const std::string& path) {
    std::shared_ptr<const Prompt> prompt = take_recent(text);
    if (!prompt) {
        const auto made = std::make_shared<Prompt>();
        BONSAI_TRY(encode_one(text, made.get()));
        prompt = made;
    }
    remember(prompt);
    return write_embeds(path, embeds_shape(), *prompt);
}

Status Pipeline::load_embeds(const std::string& path, std::string* text) {
    const auto prompt = std::make_shared<Prompt>();
    BONSAI_TRY(read_embeds(path, embeds_shape(), prompt.get()));
    take_recent(prompt->text);
    remember(prompt);
    *text = prompt->text;
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
