// SPDX-License-Identifier: Apache-2.0
// The first stage of the pipeline: a prompt becomes what the transformer is conditioned on. The
// last prompts used are kept as such.
#include <algorithm>
#include <filesystem>

#include "model/monitor.h"

namespace bonsai {

namespace {

// Encoded prompts that are kept; one of the largest model has 16 MB.
constexpr size_t kRecentBytes = 64u << 20;

} // namespace

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
    Run run{*backend_, *arena,
            [&](double fraction) { return monitor.tick(first + share * fraction); }, nullptr,
            streams(text_encoder_.weights(), plan.total())};
    if (monitor.request.probe && first == 0)
        run.probe = [&](const std::string& name, const Tensor& value) {
            return monitor.request.probe(name, value, *backend_);
        };
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
    namespace fs = std::filesystem;
    std::error_code none_yet;
    if (fs::equivalent(fs::u8path(path), fs::u8path(file_->file().path()), none_yet))
        return fail(ErrorCode::kArgument, "%s is the model itself; give another name",
                    path.c_str());
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

} // namespace bonsai
