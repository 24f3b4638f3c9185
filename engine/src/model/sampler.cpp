// SPDX-License-Identifier: Apache-2.0
#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "core/raw_vector.h"
#include "core/rng.h"

namespace bonsai {

// Two straight lines in the token count, fitted at 10 and at 200 steps, and a straight line in the
// step count between them; above 4300 tokens only the second (the published FLUX.2 schedule).
double empirical_mu(int64_t tokens, int64_t steps) {
    const double n = static_cast<double>(tokens);
    const double at_200_steps = 0.00016927 * n + 0.45666666;
    if (tokens > 4300) return at_200_steps;
    const double at_10_steps = 8.73809524e-05 * n + 1.89833333;
    const double slope = (at_200_steps - at_10_steps) / 190.0;
    return slope * static_cast<double>(steps) + at_200_steps - 200.0 * slope;
}

std::vector<float> sigma_schedule(const ScheduleConfig& config, int64_t tokens, int64_t steps,
                                  float shift) {
    const bool dynamic = config.dynamic && shift <= 0;
    const float static_shift = shift > 0 ? shift : config.shift;
    const double mu = empirical_mu(tokens, steps);
    const float factor = static_cast<float>(config.exponential ? std::exp(mu) : mu);
    std::vector<float> sigmas;
    for (int64_t k = 0; k < steps; ++k) {
        // linspace(1, 1 / steps, steps)
        const double last = 1.0 / static_cast<double>(steps);
        const double t = steps > 1 ? 1.0 + static_cast<double>(k) *
                                               ((last - 1.0) / static_cast<double>(steps - 1))
                                   : 1.0;
        const auto s = static_cast<float>(k + 1 == steps && steps > 1 ? last : t);
        sigmas.push_back(dynamic ? factor / (factor + (1.0f / s - 1.0f))
                                 : static_shift * s / (1.0f + (static_shift - 1.0f) * s));
    }
    sigmas.push_back(0.0f);
    return sigmas;
}

float round_to(float value, bonsai_dtype dtype) {
    switch (dtype) {
    case BONSAI_DTYPE_F16:
        return f16_to_f32(f32_to_f16(value));
    case BONSAI_DTYPE_BF16:
        return bf16_to_f32(f32_to_bf16(value));
    default:
        return value;
    }
}

float network_timestep(float sigma, int64_t train_steps, bonsai_dtype dtype) {
    // The scheduler's timestep, the division by 1000 in the pipeline and the product in the network
    // each round.
    const float timestep = round_to(sigma * static_cast<float>(train_steps), dtype);
    return round_to(round_to(timestep / 1000.0f, dtype) * 1000.0f, dtype);
}

void noise_tokens(uint64_t seed, int64_t channels, int64_t height, int64_t width,
                  bonsai_dtype dtype, float* tokens) {
    const int64_t count = height * width;
    RawVector<float> planes(static_cast<size_t>(channels * count));
    torch_cpu_randn(seed, planes.data(), planes.size());
    constexpr int64_t kPiece = 16; // tokens at a time, whose cache lines stay
    for (int64_t first = 0; first < count; first += kPiece) {
        const int64_t end = std::min(first + kPiece, count);
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = first; i < end; ++i)
                tokens[i * channels + c] =
                    round_to(planes[static_cast<size_t>(c * count + i)], dtype);
    }
}

} // namespace bonsai
