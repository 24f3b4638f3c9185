// SPDX-License-Identifier: Apache-2.0
// Monitor: one generate call as seen from outside. It passes progress on, stops the work when told
// to, and notes how long each stage takes and how much memory it holds.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/system.h"
#include "model/pipeline.h"

namespace bonsai {

struct Pipeline::Monitor {
    using Clock = std::chrono::steady_clock;

    Monitor(const std::atomic<bool>& cancel_flag, const MappedFile& model, const Backend& device,
            const Request& what)
        : cancelled(cancel_flag), file(model), backend(device), request(what) {}

    const std::atomic<bool>& cancelled;
    const MappedFile& file;
    const Backend& backend;
    const Request& request;
    bonsai_stage stage = BONSAI_STAGE_TEXT_ENCODER;
    int64_t image = 0, step = 0;
    Clock::time_point start = Clock::now(), stage_start = start;
    double seconds[3] = {0, 0, 0};
    uint64_t peak[3] = {0, 0, 0};
    uint64_t arena = 0;   // the largest
    bool preview = false; // a preview is decoded: the stage's progress stands still

    void enter(bonsai_stage next) {
        stage = next;
        stage_start = Clock::now();
        peak[stage] = 0;
    }
    // pictures: that the stage worked on at a time.
    void leave(size_t pictures = 1) {
        seconds[stage] = since(stage_start) / static_cast<double>(pictures);
        note_memory();
    }
    Status tick(double fraction) {
        BONSAI_TRY(file.check()); // what has been computed from a file that changed is worthless
        note_memory();
        reached_ = preview ? reached_ : std::min(1.0, fraction);
        if (request.on_progress) {
            bonsai_progress progress{};
            progress.struct_size = sizeof progress;
            progress.stage = stage;
            progress.image = static_cast<int32_t>(image);
            progress.images = static_cast<int32_t>(request.images);
            progress.step = stage == BONSAI_STAGE_DENOISE ? static_cast<int32_t>(step) : 0;
            progress.steps = static_cast<int32_t>(request.steps);
            progress.fraction = reached_;
            progress.stage_seconds = since(stage_start);
            progress.total_seconds = since(start);
            if (!request.on_progress(progress))
                return fail(ErrorCode::kCancelled, "stopped by the progress callback");
        }
        return cancelled ? fail(ErrorCode::kCancelled, "cancelled") : Status();
    }
    void next_image() {
        ++image;
        seconds[BONSAI_STAGE_TEXT_ENCODER] = 0; // the prompt was encoded for the first
    }
    bonsai_stats stats() const {
        bonsai_stats out{};
        out.text_encoder_seconds = seconds[BONSAI_STAGE_TEXT_ENCODER];
        out.denoise_seconds = seconds[BONSAI_STAGE_DENOISE];
        out.vae_seconds = seconds[BONSAI_STAGE_VAE];
        out.total_seconds = out.text_encoder_seconds + out.denoise_seconds + out.vae_seconds;
        out.text_encoder_peak = peak[BONSAI_STAGE_TEXT_ENCODER];
        out.denoise_peak = peak[BONSAI_STAGE_DENOISE];
        out.vae_peak = peak[BONSAI_STAGE_VAE];
        out.arena_bytes = arena;
        return out;
    }

  private:
    static double since(Clock::time_point begin) {
        return std::chrono::duration<double>(Clock::now() - begin).count();
    }
    double reached_ = 0; // fraction of the stage
    void note_memory() {
        const uint64_t there = backend.memory_used();
        peak[stage] = std::max(peak[stage], there > 0 ? there : resident_bytes());
    }
};

} // namespace bonsai
