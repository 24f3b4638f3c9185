// SPDX-License-Identifier: Apache-2.0
// TextEncoder: the first layers of a Qwen3 decoder. Its residual stream after a few chosen layers,
// side by side, is what the transformer is conditioned on.
#pragma once

#include "model/config.h"
#include "model/run.h"
#include "model/weights.h"

namespace bonsai {

class TextEncoder {
  public:
    Status load(const TextEncoderConfig& config, WeightLoader& loader);

    // ids[T], of which the first n_real are the prompt and the rest padding -> out [T,
    // prompt_width]. Padding keys are masked, padding rows are computed: the transformer sees them.
    Status encode(const Run& run, const int32_t* ids, int64_t n_real, const Tensor& out) const;

    const WeightSet& weights() const { return weights_; }
    // Most that is resident at a time when a run is streamed.
    uint64_t streamed_bytes() const;

  private:
    struct Layer {
        Tensor attn_norm, ffn_norm;        // [1, D]
        Tensor q_norm, k_norm;             // [1, head_dim]
        Tensor attn_q, attn_k, attn_v;     // [heads * head_dim, D], [kv_heads * head_dim, D] twice
        Tensor attn_output;                // [D, heads * head_dim]
        Tensor ffn_gate, ffn_up, ffn_down; // [F, D], [F, D], [D, F]
    };
    struct Buffers {
        Tensor x, h;      // [T, D]
        Tensor q, k, v;   // [T, heads * head_dim], [n_real, kv_heads * head_dim] twice
        Tensor attention; // [T, heads * head_dim]
        Tensor gate, up;  // [T, F]
        Tensor activated; // [T, F], f32; is `gate` where that is
        Tensor cos, sin;  // [T, head_dim / 2]
    };
    struct Rope {
        std::vector<float> cos, sin; // [T, head_dim / 2]
    };
    Status allocate(const Run& run, int64_t n_real, Buffers* b) const;
    Status layer(const Run& run, const Layer& w, const Buffers& b) const;
    Rope make_rope() const;

    TextEncoderConfig config_;
    WeightSet weights_;
    Tensor token_embd_;  // [V, D]
    Tensor output_norm_; // [1, D] or empty
    std::vector<Layer> layers_;
    mutable Rope rope_;      // from the first use on
    bool quantised_ = false; // all layers: activations may be of the types that save time
};

} // namespace bonsai
