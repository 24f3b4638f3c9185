// SPDX-License-Identifier: Apache-2.0
// Config: every size and constant of the pipeline, as the model file declares them (keys:
// convert/FORMAT.md).
#pragma once

#include <string>
#include <vector>

#include "core/gguf.h"

namespace bonsai {

// Width and height of a picture are multiples of this, 8 by the VAE and 2 by the patches, and at
// most that many pixels.
constexpr int64_t kSizeMultiple = 16;
constexpr int64_t kMaxSide = 16384;

struct TextEncoderConfig {
    int64_t vocab_size, width, layers, heads, kv_heads, head_dim, ffn_width;
    float norm_eps;
    double rope_theta;
    std::vector<int64_t> out_layers; // residual stream after this many layers, ascending
    int64_t max_tokens;
    bool final_norm; // the last entry is read after the final norm
    int64_t prompt_width() const { return width * static_cast<int64_t>(out_layers.size()); }
};

struct TransformerConfig {
    int64_t double_blocks, single_blocks, heads, head_dim, channels, context_width, mlp_width,
        time_channels;
    std::vector<int64_t> rope_axes; // head dims of the axes t, y, x, l
    double rope_theta;
    float norm_eps;
    int64_t width() const { return heads * head_dim; }
};

struct VaeConfig {
    int64_t latent_channels, layers_per_block, norm_groups;
    std::vector<int64_t> decoder_widths; // from full resolution down
    float norm_eps, bn_eps;
    bool mid_attention;
};

struct ScheduleConfig {
    bool dynamic;     // shift by the empirical mu of the picture size and step count
    bool exponential; // else linear time shift
    float shift;      // of a static schedule
    int64_t train_steps;
};

struct Config {
    std::string name, variant, license, source;
    bool distilled;
    int64_t default_width, default_height, default_steps;
    float default_guidance;
    std::string prompt_prefix, prompt_suffix;
    TextEncoderConfig text;
    TransformerConfig transformer;
    VaeConfig vae;
    ScheduleConfig schedule;
};

// Reads and checks all of it: values in possible ranges and consistent with each other.
Status read_config(const GgufFile& file, Config* out);

} // namespace bonsai
