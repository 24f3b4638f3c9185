// SPDX-License-Identifier: Apache-2.0
// What the steps of one picture size share: rotations of the tokens' positions, and the modulations
// of all steps.
#include <algorithm>
#include <cmath>

#include "model/transformer.h"

namespace bonsai {

namespace {

Status allocate_modulations(Arena& arena, int64_t steps, int64_t width, Modulations* out) {
    BONSAI_TRY(arena.allocate(steps, 6 * width, &out->image));
    BONSAI_TRY(arena.allocate(steps, 6 * width, &out->text));
    BONSAI_TRY(arena.allocate(steps, 3 * width, &out->single));
    return arena.allocate(steps, 2 * width, &out->out);
}

// [cos(t f_i), sin(t f_i)] with f_i = 10000^(-i / half), in single precision as diffusers computes
// it.
std::vector<float> sinusoids(const std::vector<float>& timesteps, int64_t channels) {
    const int64_t half = channels / 2;
    std::vector<float> out(timesteps.size() * static_cast<size_t>(channels));
    for (size_t s = 0; s < timesteps.size(); ++s) {
        float* row = out.data() + s * static_cast<size_t>(channels);
        for (int64_t i = 0; i < half; ++i) {
            const float exponent = static_cast<float>(-std::log(10000.0)) * static_cast<float>(i) /
                                   static_cast<float>(half);
            const float angle = timesteps[s] * std::exp(exponent);
            row[i] = std::cos(angle);
            row[half + i] = std::sin(angle);
        }
    }
    return out;
}

} // namespace

// Position of a token on the axes (t, y, x, l): text row j is (0, 0, 0, j), the picture token at
// (r, c) is (0, r, c, 0). Axis a turns its own share of the head's pairs by position * theta^(-2i /
// dims). Angles in double precision.
Status Transformer::write_rope(Backend& backend, int64_t text_tokens, int64_t latent_width,
                               const Tensor& cos, const Tensor& sin) const {
    const int64_t half = config_.head_dim / 2;
    const int64_t latent_height = (cos.rows - text_tokens) / latent_width;
    const int64_t positions[4] = {1, latent_height, latent_width,
                                  std::max<int64_t>(1, text_tokens)};
    std::vector<float> cos_values(static_cast<size_t>(cos.rows * half)),
        sin_values(cos_values.size());
    int64_t first = 0; // pair of the axis
    for (size_t axis = 0; axis < 4; ++axis) {
        const int64_t dims = config_.rope_axes[axis], pairs = dims / 2;
        // Tokens share their positions on an axis: each angle is computed once.
        std::vector<float> cos_of, sin_of;
        for (int64_t position = 0; position < positions[axis]; ++position) {
            for (int64_t i = 0; i < pairs; ++i) {
                const double frequency = std::pow(
                    config_.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
                const double angle = static_cast<double>(position) * frequency;
                cos_of.push_back(static_cast<float>(std::cos(angle)));
                sin_of.push_back(static_cast<float>(std::sin(angle)));
            }
        }
        for (int64_t s = 0; s < cos.rows; ++s) {
            const int64_t token = s - text_tokens;
            const int64_t place[4] = {0, token < 0 ? 0 : token / latent_width,
                                      token < 0 ? 0 : token % latent_width, token < 0 ? s : 0};
            std::copy_n(cos_of.begin() + place[axis] * pairs, pairs,
                        cos_values.begin() + s * half + first);
            std::copy_n(sin_of.begin() + place[axis] * pairs, pairs,
                        sin_values.begin() + s * half + first);
        }
        first += pairs;
    }
    BONSAI_TRY(backend.write(cos, cos_values.data()));
    return backend.write(sin, sin_values.data());
}

Status Transformer::prepare(const Run& run, const std::vector<float>& timesteps,
                            int64_t text_tokens, int64_t latent_height, int64_t latent_width,
                            TransformerTables* out) const {
    Backend& backend = run.backend;
    Arena& arena = run.arena;
    const int64_t width = config_.width(), steps = static_cast<int64_t>(timesteps.size());
    const int64_t rows = text_tokens + latent_height * latent_width;
    BONSAI_TRY(arena.allocate(rows, config_.head_dim / 2, &out->cos));
    BONSAI_TRY(arena.allocate(rows, config_.head_dim / 2, &out->sin));
    if (!arena.planning())
        BONSAI_TRY(write_rope(backend, text_tokens, latent_width, out->cos, out->sin));

    BONSAI_TRY(allocate_modulations(arena, steps, width, &out->all));
    BONSAI_TRY(allocate_modulations(arena, 1, width, &out->now));
    Tensor time, hidden, embedding;
    BONSAI_TRY(arena.allocate(steps, config_.time_channels, &time));
    BONSAI_TRY(arena.allocate(steps, width, &hidden));
    BONSAI_TRY(arena.allocate(steps, width, &embedding));
    BONSAI_TRY(backend.write(time, sinusoids(timesteps, config_.time_channels).data()));
    BONSAI_TRY(backend.linear(exact_linear(time, time_in_, hidden)));
    BONSAI_TRY(backend.silu({hidden, hidden}));
    BONSAI_TRY(backend.linear(exact_linear(hidden, time_out_, embedding)));
    BONSAI_TRY(run.show("s0_temb", embedding.slice_rows(0, 1)));
    BONSAI_TRY(backend.silu({embedding, embedding}));
    LinearArgs modulations = exact_linear(embedding, mod_image_, out->all.image);
    modulations.projections[1].weight = mod_text_;
    modulations.projections[1].out = out->all.text;
    modulations.projections[2].weight = mod_single_;
    modulations.projections[2].out = out->all.single;
    modulations.count = 3;
    BONSAI_TRY(backend.linear(modulations));
    BONSAI_TRY(backend.linear(exact_linear(embedding, mod_out_, out->all.out)));
    BONSAI_TRY(run.show("s0_mod_img", out->all.image.slice_rows(0, 1)));
    BONSAI_TRY(run.show("s0_mod_txt", out->all.text.slice_rows(0, 1)));
    BONSAI_TRY(run.show("s0_mod_single", out->all.single.slice_rows(0, 1)));
    for (Tensor* t : {&time, &hidden, &embedding})
        arena.release(t);
    run.drop({time_in_, time_out_, mod_image_, mod_text_, mod_single_, mod_out_});
    return Status();
}

Status Transformer::begin_step(const Run& run, const TransformerTables& tables,
                               int64_t step) const {
    Backend& backend = run.backend;
    const Modulations &all = tables.all, &now = tables.now;
    BONSAI_TRY(backend.copy(all.image.slice_rows(step, 1), now.image));
    BONSAI_TRY(backend.copy(all.text.slice_rows(step, 1), now.text));
    BONSAI_TRY(backend.copy(all.single.slice_rows(step, 1), now.single));
    return backend.copy(all.out.slice_rows(step, 1), now.out);
}

} // namespace bonsai
