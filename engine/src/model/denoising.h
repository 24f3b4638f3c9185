// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/pipeline.h"

namespace bonsai {

// State of the steps. Devices keep it for the next picture: one of the same size and schedule finds
// its tables, its prompts' contexts if they are the same, and the recorded ops.
struct Pipeline::Denoising {
    // What it was made for: size in tokens, pictures at a time, the steps' timesteps.
    int64_t height = 0, width = 0, pictures = 0;
    std::vector<float> timesteps;

    std::unique_ptr<Arena> arena; // of the tensors that follow
    Tensor latents, velocity;     // [B N, channels]
    std::vector<Tensor> contexts; // [T, C]: the prompt's, then with guidance the empty prompt's
    std::vector<std::shared_ptr<const Prompt>> prompts; // whose contexts these are
    TransformerTables tables;

    // The ops of an evaluation, one for each context, on devices that can run them again, and the
    // memory of the activations they work in.
    std::vector<std::unique_ptr<Capture>> recorded;
    const void* activations = nullptr;
    bool unrecordable = false;
    std::function<Status()> meanwhile; // once, while the device works on the first evaluation

    std::vector<float> state,
        change; // latents and velocity on the host, where the Euler steps are taken

    bool serves(const Request& request, int64_t batch, const std::vector<float>& steps,
                size_t passes) const {
        return height == request.height / kSizeMultiple && width == request.width / kSizeMultiple &&
               pictures == batch && timesteps == steps && contexts.size() == passes;
    }
};

} // namespace bonsai
