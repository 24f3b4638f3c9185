// SPDX-License-Identifier: Apache-2.0
// The steps of a picture: start noise to latents. On devices that keep their memory everything that
// does not depend on prompt and seed stays there for the next picture.
#include <system_error>

#include "model/denoising.h"
#include "model/monitor.h"

namespace bonsai {

Pipeline::~Pipeline() = default;

std::vector<float> Pipeline::schedule(const Request& request) const {
    const int64_t tokens = request.height / kSizeMultiple * (request.width / kSizeMultiple);
    return sigma_schedule(config_.schedule, tokens, request.steps, request.shift);
}

// The pictures' tensors, rotations and modulations; also run with planning arenas.
Status Pipeline::prepare_denoising(const Run& run, const Request& request, int64_t pictures,
                                   size_t passes, Denoising* d) const {
    d->pictures = pictures;
    d->height = request.height / kSizeMultiple;
    d->width = request.width / kSizeMultiple;
    d->timesteps = timesteps(request);
    const int64_t channels = config_.transformer.channels, text = config_.text.max_tokens;
    const int64_t rows = pictures * d->height * d->width;
    BONSAI_TRY(d->arena->allocate(rows, channels, &d->latents));
    BONSAI_TRY(d->arena->allocate(rows, channels, &d->velocity));
    d->contexts.resize(passes);
    for (Tensor& context : d->contexts)
        BONSAI_TRY(d->arena->allocate(text, config_.transformer.width(), &context));
    const Run kept{run.backend, *d->arena, run.tick, run.probe, run.streamed};
    return transformer_.prepare(kept, d->timesteps, text, d->height, d->width, &d->tables);
}

// The prompts' contexts, unless they are there; also run with planning arenas, without prompts.
Status Pipeline::embed_prompts(const Run& run,
                               const std::vector<std::shared_ptr<const Prompt>>& prompts,
                               Denoising* d) const {
    d->prompts.resize(d->contexts.size());
    for (size_t i = 0; i < d->contexts.size(); ++i) {
        const Prompt* prompt = run.arena.planning() ? nullptr : prompts[i].get();
        if (prompt && prompt == d->prompts[i].get()) continue;
        if (prompt && prompt == pending_.prompt.get()) { // its rows are on the device
            BONSAI_TRY(transformer_.embed_context(run, pending_.rows, d->contexts[i]));
            d->prompts[i] = prompts[i];
            continue;
        }
        Tensor rows;
        BONSAI_TRY(run.arena.allocate(config_.text.max_tokens, config_.text.prompt_width(), &rows));
        BONSAI_TRY(run.backend.write(rows, prompt ? prompt->rows.data() : nullptr));
        BONSAI_TRY(transformer_.embed_context(run, rows, d->contexts[i]));
        run.arena.release(&rows);
        if (prompt) d->prompts[i] = prompts[i];
    }
    return Status();
}

std::vector<float> Pipeline::timesteps(const Request& request) const {
    std::vector<float> out = schedule(request);
    out.pop_back(); // where the last step arrives
    for (float& sigma : out)
        sigma = network_timestep(sigma, config_.schedule.train_steps, request.timestep_dtype);
    return out;
}

// Begins to draw the start noise of a picture; without a thread for it, it is drawn when it is
// asked for.
std::future<std::vector<float>> Pipeline::begin_noise(const Request& request, uint64_t seed) const {
    const int64_t channels = config_.transformer.channels;
    const int64_t height = request.height / kSizeMultiple, width = request.width / kSizeMultiple;
    const auto draw = [=, dtype = request.noise_dtype] {
        std::vector<float> tokens(static_cast<size_t>(height * width * channels));
        noise_tokens(seed, channels, height, width, dtype, tokens.data());
        return tokens;
    };
    const bool idle = backend_->device().threads == 0; // the processor, while a device works
    try {
        if (idle) return std::async(std::launch::async, draw);
    } catch (const std::system_error&) { // no more threads
    }
    return std::async(std::launch::deferred, draw);
}

// One evaluation into d->velocity. The first brings weights to the device and finds out how much
// scratch memory ops take; the second is recorded where the device can do that, and run again
// afterwards: all steps are alike.
Status Pipeline::run_transformer(const Run& run, size_t context, bool first, Denoising* d) const {
    Backend& backend = run.backend;
    d->recorded.resize(d->contexts.size());
    std::unique_ptr<Capture>& recorded = d->recorded[context];
    if (recorded) {
        const Status status = backend.replay(*recorded);
        if (status.code() != ErrorCode::kUnsupported)
            return status.ok() ? run.progress(1.0) : status;
        recorded.reset(); // memory has moved
    }
    const auto evaluate = [&] {
        return transformer_.evaluate(run, d->tables, d->latents, d->contexts[context], d->velocity);
    };
    if (first || run.streamed || run.probe || d->unrecordable || !backend.begin_capture().ok())
        return evaluate();
    std::unique_ptr<Arena> before;
    Status status;
    try {
        before = run.arena.trial();
        status = evaluate();
    } catch (...) { // whatever happens, the recording ends
        status = caught();
    }
    const Status ended = backend.end_capture(&recorded);
    if (status.code() == ErrorCode::kCancelled) return status;
    if (status.ok() && ended.ok()) return Status();
    d->unrecordable = true; // recording is a gain in time only
    recorded.reset();
    if (before) run.arena.restore(*before);
    return evaluate();
}

// Velocity of the present state, guidance applied, into d->change.
Status Pipeline::evaluate(const Run& run, const Request& request, int64_t step,
                          Denoising* d) const {
    BONSAI_TRY(transformer_.begin_step(run, d->tables, step));
    BONSAI_TRY(run.backend.write(d->latents, d->state.data()));
    BONSAI_TRY(run_transformer(run, 0, step == 0, d));
    if (d->meanwhile) {
        const std::function<Status()> meanwhile = std::move(d->meanwhile);
        d->meanwhile = nullptr;
        BONSAI_TRY(meanwhile());
    }
    BONSAI_TRY(run.backend.read(d->velocity, d->change.data()));
    if (d->contexts.size() > 1) {
        Run quiet = run;
        quiet.probe = nullptr; // probes see the conditional pass
        BONSAI_TRY(run_transformer(quiet, 1, step == 0, d));
        std::vector<float> unconditional(d->change.size());
        BONSAI_TRY(run.backend.read(d->velocity, unconditional.data()));
        for (size_t i = 0; i < d->change.size(); ++i)
            d->change[i] = unconditional[i] + request.guidance * (d->change[i] - unconditional[i]);
    }
    return Status();
}

// The tables of d, unless what the last picture left serves.
Status Pipeline::open_denoising(const Run& run, const Request& request, int64_t pictures,
                                size_t bytes, std::unique_ptr<Denoising>* d) const {
    const size_t passes = encoded_.size();
    if (*d && !request.probe && (*d)->serves(request, pictures, timesteps(request), passes)) {
        if ((*d)->activations != run.arena.memory()) (*d)->recorded.clear();
    } else {
        *d = std::make_unique<Denoising>();
        BONSAI_TRY(Arena::create(*backend_, bytes, &(*d)->arena));
        BONSAI_TRY(prepare_denoising(run, request, pictures, passes, d->get()));
    }
    (*d)->activations = run.arena.memory();
    (*d)->unrecordable = false;
    return embed_prompts(run, encoded_, d->get());
}

// noise and latents: of `pictures` pictures, one behind the other.
Status Pipeline::denoise(const Request& request, int64_t pictures, std::vector<float> noise,
                         Monitor& monitor, std::vector<float>* latents) {
    StagePlan plan;
    BONSAI_TRY(plan_denoise(request, pictures, &plan));
    std::unique_ptr<Denoising> d = std::move(kept_); // an error leaves nothing behind
    std::unique_ptr<Arena> arena;
    BONSAI_TRY(borrow_arena(plan.arena, &arena));
    monitor.arena = std::max<uint64_t>(monitor.arena, plan.arena + plan.kept);
    monitor.step = 0;
    const double passes = static_cast<double>(encoded_.size());
    double pass = 0, last = 0; // a fraction that falls marks the next pass of a guided step
    Run run{*backend_, *arena,
            [&](double fraction) {
                pass += fraction < last ? 1 : 0;
                last = fraction;
                return monitor.tick(
                    (static_cast<double>(monitor.step) + (pass + fraction) / passes) /
                    static_cast<double>(request.steps));
            },
            nullptr, streams(transformer_.weights(), plan.total())};
    if (request.probe && monitor.image == 0)
        run.probe = [&](const std::string& name, const Tensor& value) {
            return request.probe(name, value, *backend_);
        };
    BONSAI_TRY(monitor.tick(0));
    BONSAI_TRY(open_denoising(run, request, pictures, plan.kept, &d));
    if (pending_.prompt) d->meanwhile = [this] { return fetch_pending(); };
    d->state = std::move(noise);
    d->change.resize(d->state.size());
    BONSAI_TRY(run.show("noise", f32_matrix(d->state.data(), d->latents.rows, d->latents.cols)));
    for (int64_t k = 0; k < request.steps; ++k) {
        pass = last = 0;
        BONSAI_TRY(take_step(run, request, k, monitor, d.get()));
    }
    *latents = std::move(d->state);
    if (backend_->keeps_memory()) kept_ = std::move(d);
    return Status();
}

Status Pipeline::take_step(const Run& run, const Request& request, int64_t step, Monitor& monitor,
                           Denoising* d) {
    const std::vector<float> sigmas = schedule(request);
    Run blocks = run;
    if (step > 0) blocks.probe = nullptr; // they are shown for the first step only
    BONSAI_TRY(evaluate(blocks, request, step, d));
    const float dt = sigmas[static_cast<size_t>(step + 1)] - sigmas[static_cast<size_t>(step)];
    for (size_t i = 0; i < d->state.size(); ++i)
        d->state[i] += dt * d->change[i];
    monitor.step = step + 1;
    BONSAI_TRY(check_numbers(d->state.data(), d->state.size(), BONSAI_STAGE_DENOISE,
                             format("at step %lld of %lld", static_cast<long long>(step + 1),
                                    static_cast<long long>(request.steps))));
    BONSAI_TRY(monitor.tick(static_cast<double>(step + 1) / static_cast<double>(request.steps)));
    const int64_t tokens = d->latents.rows, channels = d->latents.cols;
    BONSAI_TRY(run.show("velocity_" + std::to_string(step),
                        f32_matrix(d->change.data(), tokens, channels)));
    BONSAI_TRY(
        run.show("latents_" + std::to_string(step), f32_matrix(d->state.data(), tokens, channels)));
    return report_step(request, step, sigmas, *d, monitor);
}

// Tells of each picture in turn.
Status Pipeline::report_step(const Request& request, int64_t step, const std::vector<float>& sigmas,
                             const Denoising& d, Monitor& monitor) {
    if (!request.on_step) return Status();
    bonsai_step info{};
    info.struct_size = sizeof info;
    info.step = static_cast<int32_t>(step + 1);
    info.steps = static_cast<int32_t>(request.steps);
    info.latent_height = static_cast<int32_t>(d.height);
    info.latent_width = static_cast<int32_t>(d.width);
    info.latent_channels = static_cast<int32_t>(d.latents.cols);
    info.width = static_cast<int32_t>(request.width);
    info.height = static_cast<int32_t>(request.height);
    info.sigma = sigmas[static_cast<size_t>(step + 1)];
    const auto size = static_cast<std::ptrdiff_t>(d.height * d.width * d.latents.cols);
    for (int64_t p = 0; p < d.pictures; ++p) {
        const auto begin = d.state.begin() + p * size;
        info.image = static_cast<int32_t>(monitor.image + p);
        info.latents = &*begin;
        std::vector<uint8_t> rgb;
        if (request.preview_every > 0 && (step + 1) % request.preview_every == 0) {
            // Where a straight line to noise level 0 would end.
            std::vector<float> predicted(begin, begin + size);
            for (std::ptrdiff_t i = 0; i < size; ++i)
                predicted[static_cast<size_t>(i)] -=
                    info.sigma * d.change[static_cast<size_t>(p * size + i)];
            bool in_strips = false;
            monitor.preview = true;
            BONSAI_TRY(decode(predicted, d.height, d.width, monitor, &in_strips, &rgb));
            monitor.preview = false;
        }
        info.rgb = rgb.empty() ? nullptr : rgb.data();
        if (!request.on_step(info))
            return fail(ErrorCode::kCancelled, "stopped by the step callback");
    }
    return Status();
}

} // namespace bonsai
