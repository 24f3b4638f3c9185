// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/pipeline.h"

namespace bonsai {

struct Pipeline::Denoising {
    Tensor latents, velocity;     // [N, channels]
    std::vector<Tensor> contexts; // [T, C]: the prompt's, then with guidance the empty prompt's
    TransformerTables tables;
    // The ops of an evaluation, one for each context, on devices that can run them again.
    std::vector<std::unique_ptr<Capture>> recorded;
    bool unrecordable = false;
    std::vector<float> state,
        change; // latents and velocity on the host, where the Euler steps are taken
};

} // namespace bonsai
