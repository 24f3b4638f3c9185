// SPDX-License-Identifier: Apache-2.0
// Transformer: the FLUX.2 velocity network. Double blocks keep text and image tokens on weights of
// their own and join them in attention; single blocks treat both alike. The stream is one matrix
// [B S, C]: B pictures one below the other, text rows first in each. Products in single blocks see
// the rows of all pictures; whatever sees one row or one picture at a time gives each picture what
// it would be alone.
#pragma once

#include "model/config.h"
#include "model/run.h"
#include "model/weights.h"

namespace bonsai {

// A row a step.
struct Modulations {
    Tensor image;  // [steps, 6 C]: shift, scale, gate of attention, then of the MLP
    Tensor text;   // [steps, 6 C]
    Tensor single; // [steps, 3 C]: shift, scale, gate
    Tensor out;    // [steps, 2 C]: scale, shift
};

// Everything that is fixed during the steps of one picture size: rotations, and the modulations of
// all steps.
struct TransformerTables {
    Tensor cos, sin; // [S, head_dim / 2]
    Modulations all;
    Modulations now; // one row, of the step at hand: all steps run on the same addresses
};

class Transformer {
  public:
    Status load(const TransformerConfig& config, WeightLoader& loader);

    // prompt [T, prompt_width] -> context [T, C]; once a prompt. Kept in float: its rows may hold
    // massive outliers.
    Status embed_context(const Run& run, const Tensor& prompt, const Tensor& context) const;

    // Their weights, a tenth of all, are not needed again for this picture and go back to the
    // system. timesteps: one for each step, as the sinusoid sees them (about 0 to 1000).
    Status prepare(const Run& run, const std::vector<float>& timesteps, int64_t text_tokens,
                   int64_t latent_height, int64_t latent_width, TransformerTables* out) const;

    // Before the evaluations of a step.
    Status begin_step(const Run& run, const TransformerTables& tables, int64_t step) const;

    // One evaluation: latents [B N, channels], context [T, C], of all -> velocity [B N, channels].
    Status evaluate(const Run& run, const TransformerTables& tables, const Tensor& latents,
                    const Tensor& context, const Tensor& velocity) const;

    // All products of blocks may meet int8 codes: those give a row the same result among any
    // others, which is not asked of float products on devices.
    bool quantised() const { return quantised_; }

    const WeightSet& weights() const { return weights_; }
    // Most that is resident at a time when a run is streamed.
    uint64_t streamed_bytes() const;

  private:
    // The half of a double block that belongs to text or image tokens.
    struct Side {
        Tensor q, k, v, out;          // [C, C]
        Tensor q_norm, k_norm;        // [1, head_dim]
        Tensor linear_in, linear_out; // [2 F, C], [C, F]
    };
    struct DoubleBlock {
        Side image, text;
    };
    struct SingleBlock {
        Tensor qkv, mlp_in;    // rows of one stored matrix: [3 C, C] and [2 F, C]
        Tensor out;            // [C, C + F]: attention columns first
        Tensor q_norm, k_norm; // [1, head_dim]
    };
    struct Buffers {
        Tensor stream; // [B S, C] f32
        Tensor h;      // [B S, C] normalised stream
        Tensor qkv;    // [B S, 3 C]
        Tensor joined; // [B S, C + F]: attention output | activated MLP
        // [mlp_rows, 2 F]: an MLP works through the tokens in pieces. Absent where products
        // activate.
        Tensor hidden;
    };
    struct Extent {          // of the stream, in rows
        int64_t text, image; // of one picture
        int64_t pictures;
        int64_t tokens() const { return text + image; }
    };
    struct Half { // of a double block: the rows of text or image
        const Side& w;
        const Tensor& mod;
        int64_t first;
        Buffers b;
    };
    void note_types();
    ActivationTypes types(const Backend& backend) const;
    Status load_double(const std::string& name, WeightLoader& loader, DoubleBlock* block);
    Status load_single(const std::string& name, WeightLoader& loader, SingleBlock* block);
    Status write_rope(Backend& backend, int64_t text_tokens, int64_t latent_width,
                      const Tensor& cos, const Tensor& sin) const;
    Status allocate(const Run& run, int64_t rows, Buffers* b) const;
    Status embed(const Run& run, const Tensor& latents, const Tensor& context, const Extent& e,
                 const Tensor& stream) const;
    Status run_blocks(const Run& run, const TransformerTables& tables, const Extent& e,
                      const Buffers& b) const;
    Status project(const Run& run, const TransformerTables& tables, const Extent& e,
                   const Tensor& stream, const Tensor& velocity) const;
    static Buffers rows_of(const Buffers& b, int64_t first, int64_t rows);
    Status rotate(const Run& run, const TransformerTables& tables, const Tensor& qkv, int64_t first,
                  const Tensor& q_norm, const Tensor& k_norm) const;
    Status attend(const Run& run, const Buffers& b) const;
    Status activate(const Run& run, const Tensor& hidden, const Tensor& out) const;
    Status mlp(const Run& run, const Tensor& in, const Tensor& h, const Tensor& hidden,
               const Tensor& out) const;
    Status double_block(const Run& run, const DoubleBlock& w, const TransformerTables& tables,
                        int64_t text_tokens, const Buffers& b) const;
    Status double_mlp(const Run& run, const Half (&halves)[2], const Buffers& b) const;
    Status single_block(const Run& run, const SingleBlock& w, const TransformerTables& tables,
                        const Buffers& b) const;

    TransformerConfig config_;
    WeightSet weights_;
    bool quantised_ = false; // all products in blocks may meet int8 activations
    bool low_bit_ = false;   // all weights of blocks are of low-bit types
    Tensor x_embedder_, context_embedder_,
        proj_out_;              // [C, channels], [C, prompt_width], [channels, C]
    Tensor time_in_, time_out_; // [C, time_channels], [C, C]
    Tensor mod_image_, mod_text_, mod_single_, mod_out_; // [6 C, C] twice, [3 C, C], [2 C, C]
    std::vector<DoubleBlock> double_blocks_;
    std::vector<SingleBlock> single_blocks_;
};

} // namespace bonsai
