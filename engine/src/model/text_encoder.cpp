// SPDX-License-Identifier: Apache-2.0
#include "model/text_encoder.h"

#include <algorithm>
#include <cmath>

namespace bonsai {

Status TextEncoder::load(const TextEncoderConfig& c, WeightLoader& loader) {
    config_ = c;
    WeightSet* set = &weights_;
    const int64_t q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
    BONSAI_TRY(loader.matrix("te.token_embd.weight", c.vocab_size, c.width, set, &token_embd_));
    layers_.resize(static_cast<size_t>(c.layers));
    for (size_t i = 0; i < layers_.size(); ++i) {
        const std::string name = "te.blk." + std::to_string(i) + ".";
        Layer& w = layers_[i];
        BONSAI_TRY(loader.vector(name + "attn_norm.weight", c.width, set, &w.attn_norm));
        BONSAI_TRY(loader.vector(name + "ffn_norm.weight", c.width, set, &w.ffn_norm));
        BONSAI_TRY(loader.vector(name + "attn_q_norm.weight", c.head_dim, set, &w.q_norm));
        BONSAI_TRY(loader.vector(name + "attn_k_norm.weight", c.head_dim, set, &w.k_norm));
        BONSAI_TRY(loader.matrix(name + "attn_q.weight", q_width, c.width, set, &w.attn_q));
        BONSAI_TRY(loader.matrix(name + "attn_k.weight", kv_width, c.width, set, &w.attn_k));
        BONSAI_TRY(loader.matrix(name + "attn_v.weight", kv_width, c.width, set, &w.attn_v));
        BONSAI_TRY(
            loader.matrix(name + "attn_output.weight", c.width, q_width, set, &w.attn_output));
        BONSAI_TRY(loader.matrix(name + "ffn_gate.weight", c.ffn_width, c.width, set, &w.ffn_gate));
        BONSAI_TRY(loader.matrix(name + "ffn_up.weight", c.ffn_width, c.width, set, &w.ffn_up));
        BONSAI_TRY(loader.matrix(name + "ffn_down.weight", c.width, c.ffn_width, set, &w.ffn_down));
    }
    if (c.final_norm)
        BONSAI_TRY(loader.vector("te.output_norm.weight", c.width, set, &output_norm_));
    quantised_ = true;
    for (const Layer& w : layers_)
        for (const Tensor* t :
             {&w.attn_q, &w.attn_k, &w.attn_v, &w.attn_output, &w.ffn_gate, &w.ffn_up, &w.ffn_down})
            quantised_ = quantised_ && is_block_quantized(t->dtype);
    return Status();
}

Status TextEncoder::allocate(const Run& run, int64_t n_real, Buffers* b) const {
    const TextEncoderConfig& c = config_;
    Arena& arena = run.arena;
    const ActivationTypes types = quantised_ ? run.backend.activations() : ActivationTypes();
    const int64_t tokens = c.max_tokens, q_width = c.heads * c.head_dim,
                  kv_width = c.kv_heads * c.head_dim;
    BONSAI_TRY(arena.allocate(tokens, c.width, &b->x));
    BONSAI_TRY(arena.allocate(tokens, c.width, &b->h));
    BONSAI_TRY(arena.allocate(tokens, q_width, types.heads, &b->q));
    BONSAI_TRY(arena.allocate(n_real, kv_width, types.heads, &b->k));
    BONSAI_TRY(arena.allocate(n_real, kv_width, types.heads, &b->v));
    BONSAI_TRY(arena.allocate(tokens, q_width, &b->attention));
    BONSAI_TRY(arena.allocate(tokens, c.ffn_width, types.hidden, &b->gate));
    BONSAI_TRY(arena.allocate(tokens, c.ffn_width, types.hidden, &b->up));
    b->activated = b->gate;
    if (types.hidden != DType::kF32) BONSAI_TRY(arena.allocate(tokens, c.ffn_width, &b->activated));
    BONSAI_TRY(arena.allocate(tokens, c.head_dim / 2, &b->cos));
    return arena.allocate(tokens, c.head_dim / 2, &b->sin);
}

// Angle of pair i at row p: p * theta^(-2i / head_dim), in single precision as transformers
// computes it.
TextEncoder::Rope TextEncoder::make_rope() const {
    const TextEncoderConfig& c = config_;
    const int64_t half = c.head_dim / 2;
    Rope out;
    out.cos.resize(static_cast<size_t>(c.max_tokens * half));
    out.sin.resize(out.cos.size());
    for (int64_t i = 0; i < half; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.head_dim);
        const float frequency = 1.0f / std::pow(static_cast<float>(c.rope_theta), exponent);
        for (int64_t p = 0; p < c.max_tokens; ++p) {
            const float angle = static_cast<float>(p) * frequency;
            out.cos[static_cast<size_t>(p * half + i)] = std::cos(angle);
            out.sin[static_cast<size_t>(p * half + i)] = std::sin(angle);
        }
    }
    return out;
}

Status TextEncoder::layer(const Run& run, const Layer& w, const Buffers& b) const {
    Backend& backend = run.backend;
    const TextEncoderConfig& c = config_;
    const int64_t n_real = b.k.rows;
    BONSAI_TRY(backend.rms_norm({b.x, w.attn_norm, b.h, c.norm_eps}));
    BONSAI_TRY(backend.linear(linear_args(b.h, w.attn_q, b.q)));
    LinearArgs kv =
        linear_args(b.h.slice_rows(0, n_real), w.attn_k, b.k); // padding keys are never seen
    kv.projections[1].weight = w.attn_v;
    kv.projections[1].out = b.v;
    kv.count = 2;
    BONSAI_TRY(backend.linear(kv));

    HeadNormRopeArgs rope;
    rope.head_dim = static_cast<int>(c.head_dim);
    rope.pairs = RopePairs::kHalves;
    rope.eps = c.norm_eps;
    rope.x = b.q, rope.gain = w.q_norm, rope.cos = b.cos, rope.sin = b.sin;
    rope.also = b.k, rope.also_gain = w.k_norm;
    BONSAI_TRY(backend.head_norm_rope(rope));

    AttentionArgs attention;
    attention.q = b.q, attention.k = b.k, attention.v = b.v, attention.out = b.attention;
    attention.heads = static_cast<int>(c.heads);
    attention.kv_heads = static_cast<int>(c.kv_heads);
    attention.head_dim = static_cast<int>(c.head_dim);
    attention.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    attention.causal = true;
    BONSAI_TRY(backend.attention(attention));
    BONSAI_TRY(backend.linear(linear_add_args(b.attention, w.attn_output, b.x)));

    BONSAI_TRY(backend.rms_norm({b.x, w.ffn_norm, b.h, c.norm_eps}));
    LinearArgs ffn = linear_args(b.h, w.ffn_gate, b.gate);
    ffn.projections[1].weight = w.ffn_up;
    ffn.projections[1].out = b.up;
    ffn.count = 2;
    BONSAI_TRY(backend.linear(ffn));
    BONSAI_TRY(backend.swiglu({b.gate, b.up, b.activated}));
    return backend.linear(linear_add_args(b.activated, w.ffn_down, b.x));
}

// One layer; of the embedding only the rows of the prompt are read.
uint64_t TextEncoder::streamed_bytes() const {
    uint64_t largest = 0;
    for (const Layer& w : layers_)
        largest = std::max(largest, stored_bytes({w.attn_q, w.attn_k, w.attn_v, w.attn_output,
                                                  w.ffn_gate, w.ffn_up, w.ffn_down}));
    constexpr uint64_t kPage = 4096;
    const uint64_t row = row_bytes(token_embd_.dtype, token_embd_.stride);
    const uint64_t rows = static_cast<uint64_t>(config_.max_tokens) * std::max(row, kPage);
    return largest + std::min(stored_bytes({token_embd_}), rows);
}

Status TextEncoder::encode(const Run& run, const int32_t* ids, int64_t n_real,
                           const Tensor& out) const {
    Buffers b;
    BONSAI_TRY(allocate(run, n_real, &b));
    if (!run.arena.planning()) { // which may go on beside a run, on another thread
        if (rope_.cos.empty()) rope_ = make_rope();
        BONSAI_TRY(run.backend.write(b.cos, rope_.cos.data()));
        BONSAI_TRY(run.backend.write(b.sin, rope_.sin.data()));
    }
    BONSAI_TRY(run.backend.embed_rows({token_embd_, ids, b.x}));
    size_t next = 0; // entry of out_layers
    for (int64_t i = 1; i <= config_.layers; ++i) {
        const Layer& w = layers_[static_cast<size_t>(i - 1)];
        BONSAI_TRY(layer(run, w, b));
        if (run.streamed)
            run.done_with(
                {w.attn_q, w.attn_k, w.attn_v, w.attn_output, w.ffn_gate, w.ffn_up, w.ffn_down});
        if (next < config_.out_layers.size() && config_.out_layers[next] == i) {
            const Tensor part =
                out.slice_cols(static_cast<int64_t>(next++) * config_.width, config_.width);
            if (i == config_.layers && config_.final_norm)
                BONSAI_TRY(run.backend.rms_norm({b.x, output_norm_, part, config_.norm_eps}));
            else
                BONSAI_TRY(run.backend.copy(b.x, part));
            BONSAI_TRY(run.show("te_hidden_" + std::to_string(i), part));
        }
        BONSAI_TRY(run.progress(static_cast<double>(i) / static_cast<double>(config_.layers)));
    }
    if (b.activated.data != b.gate.data) run.arena.release(&b.activated);
    for (Tensor* t : {&b.x, &b.h, &b.q, &b.k, &b.v, &b.attention, &b.gate, &b.up, &b.cos, &b.sin})
        run.arena.release(t);
    return Status();
}

} // namespace bonsai
