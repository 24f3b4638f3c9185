// SPDX-License-Identifier: Apache-2.0
// The rectified-flow schedule: which noise levels the Euler steps visit, and where the picture
// starts.
#pragma once

#include <cstdint>
#include <vector>

#include "bonsai.h"
#include "model/config.h"

namespace bonsai {

// FLUX.2's fitted log-shift for a picture of `tokens` latents and a number of steps.
double empirical_mu(int64_t tokens, int64_t steps);

// steps + 1 noise levels from 1 down to 0. shift > 0 overrides the declared schedule with a static
// one.
std::vector<float> sigma_schedule(const ScheduleConfig& config, int64_t tokens, int64_t steps,
                                  float shift);

// The timestep as the network's sinusoid sees it: train_steps * sigma, rounded to dtype as often as
// 16-bit pipelines do.
float network_timestep(float sigma, int64_t train_steps, bonsai_dtype dtype);

// Rounds to a 16-bit type and back.
float round_to(float value, bonsai_dtype dtype);

// Start noise as tokens [height * width, channels]; drawn as [channels, height, width], like
// torch.randn of the patchified latents.
void noise_tokens(uint64_t seed, int64_t channels, int64_t height, int64_t width,
                  bonsai_dtype dtype, float* tokens);

} // namespace bonsai
