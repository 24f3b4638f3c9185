// SPDX-License-Identifier: Apache-2.0
#include "model/transformer.h"

#include <algorithm>
#include <cmath>

namespace bonsai {

namespace {

// Of attention's result and the MLP's, at most this many columns share a scale: the values of an
// MLP lie further apart than those of a norm.
constexpr int kJoinedGroup = 256;

// Chunk `index` of a row of modulations.
Tensor modulation(const Tensor& row, int64_t index, int64_t width) {
    return row.slice_cols(index * width, width);
}

} // namespace

Status Transformer::load(const TransformerConfig& c, WeightLoader& loader) {
    config_ = c;
    WeightSet* set = &weights_;
    const int64_t width = c.width();
    BONSAI_TRY(loader.matrix("dit.x_embedder.weight", width, c.channels, set, &x_embedder_));
    BONSAI_TRY(loader.matrix("dit.context_embedder.weight", width, c.context_width, set,
                             &context_embedder_));
    BONSAI_TRY(loader.matrix("dit.proj_out.weight", c.channels, width, set, &proj_out_));
    const std::string time = "dit.time_guidance_embed.timestep_embedder.";
    BONSAI_TRY(loader.matrix(time + "linear_1.weight", width, c.time_channels, set, &time_in_));
    BONSAI_TRY(loader.matrix(time + "linear_2.weight", width, width, set, &time_out_));
    BONSAI_TRY(loader.matrix("dit.double_stream_modulation_img.linear.weight", 6 * width, width,
                             set, &mod_image_));
    BONSAI_TRY(loader.matrix("dit.double_stream_modulation_txt.linear.weight", 6 * width, width,
                             set, &mod_text_));
    BONSAI_TRY(loader.matrix("dit.single_stream_modulation.linear.weight", 3 * width, width, set,
                             &mod_single_));
    BONSAI_TRY(loader.matrix("dit.norm_out.linear.weight", 2 * width, width, set, &mod_out_));
    double_blocks_.resize(static_cast<size_t>(c.double_blocks));
    for (size_t i = 0; i < double_blocks_.size(); ++i)
        BONSAI_TRY(load_double("dit.transformer_blocks." + std::to_string(i) + ".", loader,
                               &double_blocks_[i]));
    single_blocks_.resize(static_cast<size_t>(c.single_blocks));
    for (size_t i = 0; i < single_blocks_.size(); ++i)
        BONSAI_TRY(load_single("dit.single_transformer_blocks." + std::to_string(i) + ".", loader,
                               &single_blocks_[i]));
    note_types();
    return Status();
}

// Which activations the weights of all blocks allow.
void Transformer::note_types() {
    quantised_ = config_.width() % kGroup == 0 && config_.mlp_width % kGroup == 0;
    low_bit_ = true;
    const auto note = [&](const Tensor& weight) {
        quantised_ = quantised_ && meets_codes(weight.dtype);
        low_bit_ = low_bit_ && is_low_bit(weight.dtype);
    };
    for (const DoubleBlock& w : double_blocks_)
        for (const Side* s : {&w.image, &w.text})
            for (const Tensor* t : {&s->q, &s->k, &s->v, &s->out, &s->linear_in, &s->linear_out})
                note(*t);
    for (const SingleBlock& w : single_blocks_)
        for (const Tensor* t : {&w.qkv, &w.mlp_in, &w.out})
            note(*t);
}

// What the backend offers, where the weights of all blocks allow it.
ActivationTypes Transformer::types(const Backend& backend) const {
    ActivationTypes offered = backend.activations();
    if (!quantised_) {
        ActivationTypes floats;
        floats.mlp_rows = offered.mlp_rows;
        return floats;
    }
    // Attention's result and the MLP's lie side by side: no group may hold both.
    if (!low_bit_ || config_.width() % offered.low_bit_group != 0) offered.low_bit_group = kGroup;
    return offered;
}

Status Transformer::load_double(const std::string& name, WeightLoader& loader, DoubleBlock* block) {
    const int64_t width = config_.width(), head = config_.head_dim;
    struct Names {
        Side* side;
        const char *q, *k, *v, *out, *q_norm, *k_norm, *ff;
    };
    const Names sides[] = {
        {&block->image, "to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k", "ff."},
        {&block->text, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q",
         "norm_added_k", "ff_context."},
    };
    for (const Names& n : sides) {
        const std::string attn = name + "attn.", ff = name + n.ff;
        WeightSet* set = &weights_;
        BONSAI_TRY(loader.matrix(attn + n.q + ".weight", width, width, set, &n.side->q));
        BONSAI_TRY(loader.matrix(attn + n.k + ".weight", width, width, set, &n.side->k));
        BONSAI_TRY(loader.matrix(attn + n.v + ".weight", width, width, set, &n.side->v));
        BONSAI_TRY(loader.matrix(attn + n.out + ".weight", width, width, set, &n.side->out));
        BONSAI_TRY(loader.vector(attn + n.q_norm + ".weight", head, set, &n.side->q_norm));
        BONSAI_TRY(loader.vector(attn + n.k_norm + ".weight", head, set, &n.side->k_norm));
        BONSAI_TRY(loader.matrix(ff + "linear_in.weight", 2 * config_.mlp_width, width, set,
                                 &n.side->linear_in));
        BONSAI_TRY(loader.matrix(ff + "linear_out.weight", width, config_.mlp_width, set,
                                 &n.side->linear_out));
    }
    return Status();
}

Status Transformer::load_single(const std::string& name, WeightLoader& loader, SingleBlock* block) {
    const int64_t width = config_.width(), mlp = config_.mlp_width;
    WeightSet* set = &weights_;
    Tensor fused;
    BONSAI_TRY(loader.matrix(name + "attn.to_qkv_mlp_proj.weight", 3 * width + 2 * mlp, width, set,
                             &fused));
    block->qkv = fused.slice_rows(0, 3 * width);
    block->mlp_in = fused.slice_rows(3 * width, 2 * mlp);
    BONSAI_TRY(loader.matrix(name + "attn.to_out.weight", width, width + mlp, set, &block->out));
    BONSAI_TRY(loader.vector(name + "attn.norm_q.weight", config_.head_dim, set, &block->q_norm));
    return loader.vector(name + "attn.norm_k.weight", config_.head_dim, set, &block->k_norm);
}

Status Transformer::embed_context(const Run& run, const Tensor& prompt,
                                  const Tensor& context) const {
    BONSAI_TRY(run.backend.linear(exact_linear(prompt, context_embedder_, context)));
    run.streamed ? run.drop({context_embedder_}) : run.done_with({context_embedder_});
    return Status();
}

// Either what is computed before the first step, or the largest block with the matrices at both
// ends.
uint64_t Transformer::streamed_bytes() const {
    const uint64_t before =
        std::max(stored_bytes({context_embedder_}),
                 stored_bytes({time_in_, time_out_, mod_image_, mod_text_, mod_single_, mod_out_}));
    uint64_t block = 0;
    for (const DoubleBlock& w : double_blocks_) {
        uint64_t sides = 0;
        for (const Side* s : {&w.image, &w.text})
            sides += stored_bytes({s->q, s->k, s->v, s->out, s->linear_in, s->linear_out});
        block = std::max(block, sides);
    }
    for (const SingleBlock& w : single_blocks_)
        block = std::max(block, stored_bytes({w.qkv, w.mlp_in, w.out}));
    return std::max(before, block + stored_bytes({x_embedder_, proj_out_}));
}

// QK norm and rotation of the fused q | k | v, whose first row is token `first` of a picture.
Status Transformer::rotate(const Run& run, const TransformerTables& tables, const Tensor& qkv,
                           int64_t first, const Tensor& q_norm, const Tensor& k_norm) const {
    const int64_t width = config_.width();
    HeadNormRopeArgs args;
    args.head_dim = static_cast<int>(config_.head_dim);
    args.pairs = RopePairs::kNeighbours;
    args.eps = config_.norm_eps;
    args.cos = tables.cos.slice_rows(first, qkv.rows);
    args.sin = tables.sin.slice_rows(first, qkv.rows);
    args.x = qkv.slice_cols(0, width);
    args.gain = q_norm;
    args.also = qkv.slice_cols(width, width);
    args.also_gain = k_norm;
    return run.backend.head_norm_rope(args);
}

// All tokens of a picture see all of its tokens: there is no mask.
Status Transformer::attend(const Run& run, const Buffers& b) const {
    const int64_t width = config_.width();
    AttentionArgs args;
    args.q = b.qkv.slice_cols(0, width);
    args.k = b.qkv.slice_cols(width, width);
    args.v = b.qkv.slice_cols(2 * width, width);
    args.out = b.joined.slice_cols(0, width);
    args.heads = args.kv_heads = static_cast<int>(config_.heads);
    args.head_dim = static_cast<int>(config_.head_dim);
    args.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
    return run.backend.attention(args);
}

// out = silu(first half) * second half of `hidden`.
Status Transformer::activate(const Run& run, const Tensor& hidden, const Tensor& out) const {
    const int64_t width = config_.mlp_width;
    return run.backend.swiglu({hidden.slice_cols(0, width), hidden.slice_cols(width, width), out});
}

// out = silu(first half) * second half of h W^T, in pieces of tokens.
Status Transformer::mlp(const Run& run, const Tensor& in, const Tensor& h, const Tensor& hidden,
                        const Tensor& out) const {
    for (int64_t first = 0; first < h.rows; first += hidden.rows) {
        const int64_t rows = std::min(hidden.rows, h.rows - first);
        const Tensor piece = hidden.slice_rows(0, rows);
        BONSAI_TRY(run.backend.linear(linear_args(h.slice_rows(first, rows), in, piece)));
        BONSAI_TRY(activate(run, piece, out.slice_rows(first, rows)));
    }
    return Status();
}

// Rows [first, first + rows) of everything.
Transformer::Buffers Transformer::rows_of(const Buffers& b, int64_t first, int64_t rows) {
    return {b.stream.slice_rows(first, rows), b.h.slice_rows(first, rows),
            b.qkv.slice_rows(first, rows), b.joined.slice_rows(first, rows), b.hidden};
}

// Of one picture. Products of text and image do not wait for each other.
Status Transformer::double_block(const Run& run, const DoubleBlock& w,
                                 const TransformerTables& tables, int64_t text_tokens,
                                 const Buffers& b) const {
    Backend& backend = run.backend;
    const int64_t width = config_.width();
    const Half halves[] = {
        {w.text, tables.now.text, 0, rows_of(b, 0, text_tokens)},
        {w.image, tables.now.image, text_tokens,
         rows_of(b, text_tokens, b.stream.rows - text_tokens)},
    };
    LinearArgs products[2];
    for (size_t i = 0; i < 2; ++i) {
        const Half& half = halves[i];
        const Tensor shift = modulation(half.mod, 0, width), scale = modulation(half.mod, 1, width);
        BONSAI_TRY(backend.layer_norm({half.b.stream, scale, shift, half.b.h, config_.norm_eps}));
        LinearArgs& args = products[i];
        args = linear_args(half.b.h, half.w.q, half.b.qkv.slice_cols(0, width));
        args.projections[1].weight = half.w.k;
        args.projections[1].out = half.b.qkv.slice_cols(width, width);
        args.projections[2].weight = half.w.v;
        args.projections[2].out = half.b.qkv.slice_cols(2 * width, width);
        args.count = 3;
    }
    BONSAI_TRY(backend.linear_pair(products[0], products[1]));
    for (const Half& half : halves)
        BONSAI_TRY(rotate(run, tables, half.b.qkv, half.first, half.w.q_norm, half.w.k_norm));
    BONSAI_TRY(attend(run, b));
    for (size_t i = 0; i < 2; ++i)
        products[i] = linear_add_args(halves[i].b.joined.slice_cols(0, width), halves[i].w.out,
                                      halves[i].b.stream, modulation(halves[i].mod, 2, width));
    BONSAI_TRY(backend.linear_pair(products[0], products[1]));
    return double_mlp(run, halves, b);
}

// The second half of a double block: norms and MLPs.
Status Transformer::double_mlp(const Run& run, const Half (&halves)[2], const Buffers& b) const {
    Backend& backend = run.backend;
    const int64_t width = config_.width();
    const auto activated = [&](const Buffers& of) {
        return of.joined.slice_cols(width, config_.mlp_width);
    };
    // As in a single block: together where the MLP takes all tokens at a time.
    const bool activates = b.hidden.empty(), whole = activates || b.hidden.rows >= b.h.rows;
    LinearArgs products[2];
    for (size_t i = 0; i < 2; ++i) {
        const Half& half = halves[i];
        const Tensor shift = modulation(half.mod, 3, width), scale = modulation(half.mod, 4, width);
        BONSAI_TRY(backend.layer_norm({half.b.stream, scale, shift, half.b.h, config_.norm_eps}));
        if (whole) {
            products[i] = linear_args(half.b.h, half.w.linear_in,
                                      activates ? activated(half.b)
                                                : b.hidden.slice_rows(half.first, half.b.h.rows));
            products[i].projections[0].activate = activates;
        } else
            BONSAI_TRY(mlp(run, half.w.linear_in, half.b.h, b.hidden, activated(half.b)));
    }
    if (whole) BONSAI_TRY(backend.linear_pair(products[0], products[1]));
    if (whole && !activates)
        BONSAI_TRY(activate(run, b.hidden.slice_rows(0, b.h.rows), activated(b)));
    for (size_t i = 0; i < 2; ++i)
        products[i] = linear_add_args(activated(halves[i].b), halves[i].w.linear_out,
                                      halves[i].b.stream, modulation(halves[i].mod, 5, width));
    return backend.linear_pair(products[0], products[1]);
}

// Of all pictures.
Status Transformer::single_block(const Run& run, const SingleBlock& w,
                                 const TransformerTables& tables, const Buffers& b) const {
    Backend& backend = run.backend;
    const int64_t width = config_.width(), tokens = tables.cos.rows;
    const Tensor shift = modulation(tables.now.single, 0, width),
                 scale = modulation(tables.now.single, 1, width);
    BONSAI_TRY(backend.layer_norm({b.stream, scale, shift, b.h, config_.norm_eps}));
    // One product where the MLP takes all tokens at a time.
    const bool activates = b.hidden.empty(), whole = activates || b.hidden.rows >= b.h.rows;
    const Tensor hidden = b.hidden.slice_rows(0, std::min(b.hidden.rows, b.h.rows)),
                 activated = b.joined.slice_cols(width, config_.mlp_width);
    LinearArgs args = linear_args(b.h, w.qkv, b.qkv);
    args.projections[1].weight = w.mlp_in;
    args.projections[1].out = activates ? activated : hidden;
    args.projections[1].activate = activates;
    args.count = whole ? 2 : 1;
    BONSAI_TRY(backend.linear(args));
    for (int64_t first = 0; first < b.stream.rows; first += tokens) {
        const Buffers picture = rows_of(b, first, tokens);
        BONSAI_TRY(rotate(run, tables, picture.qkv, 0, w.q_norm, w.k_norm));
        BONSAI_TRY(attend(run, picture));
    }
    if (!whole)
        BONSAI_TRY(mlp(run, w.mlp_in, b.h, hidden, activated));
    else if (!activates)
        BONSAI_TRY(activate(run, hidden, activated));
    return backend.linear(
        linear_add_args(b.joined, w.out, b.stream, modulation(tables.now.single, 2, width)));
}

Status Transformer::allocate(const Run& run, int64_t rows, Buffers* b) const {
    const ActivationTypes t = types(run.backend);
    const int64_t width = config_.width(), joined = width + config_.mlp_width;
    const int64_t gap = t.product == DType::kI8 ? t.product_gap : 0;
    BONSAI_TRY(run.arena.allocate(rows, width, &b->stream));
    BONSAI_TRY(run.arena.allocate(rows, width + gap, t.product, &b->h, t.low_bit_group));
    BONSAI_TRY(run.arena.allocate(rows, 3 * width, t.heads, &b->qkv));
    BONSAI_TRY(run.arena.allocate(rows, joined + gap, t.product, &b->joined,
                                  std::min(t.low_bit_group, kJoinedGroup)));
    b->h = b->h.slice_cols(0, width);
    b->joined = b->joined.slice_cols(0, joined);
    if (t.activate) return Status();
    return run.arena.allocate(std::min(t.mlp_rows, rows), 2 * config_.mlp_width, t.hidden,
                              &b->hidden);
}

// The prompt and each picture's latents become rows of the stream.
Status Transformer::embed(const Run& run, const Tensor& latents, const Tensor& context,
                          const Extent& e, const Tensor& stream) const {
    for (int64_t p = 0; p < e.pictures; ++p) {
        const Tensor picture = stream.slice_rows(p * e.tokens(), e.tokens());
        BONSAI_TRY(run.backend.copy(context, picture.slice_rows(0, e.text)));
        BONSAI_TRY(
            run.backend.linear(exact_linear(latents.slice_rows(p * e.image, e.image), x_embedder_,
                                            picture.slice_rows(e.text, e.image))));
    }
    BONSAI_TRY(run.show("s0_ctx_embed", stream.slice_rows(0, e.text))); // of the first picture
    return run.show("s0_x_embed", stream.slice_rows(e.text, e.image));
}

Status Transformer::run_blocks(const Run& run, const TransformerTables& tables, const Extent& e,
                               const Buffers& b) const {
    const double blocks = static_cast<double>(double_blocks_.size() + single_blocks_.size());
    double done = 0;
    for (size_t i = 0; i < double_blocks_.size(); ++i) {
        const DoubleBlock& w = double_blocks_[i];
        for (int64_t p = 0; p < e.pictures; ++p)
            BONSAI_TRY(
                double_block(run, w, tables, e.text, rows_of(b, p * e.tokens(), e.tokens())));
        for (const Side* s : {&w.image, &w.text})
            if (run.streamed)
                run.done_with({s->q, s->k, s->v, s->out, s->linear_in, s->linear_out});
        const std::string name = "s0_double" + std::to_string(i);
        BONSAI_TRY(run.show(name + "_txt", b.stream.slice_rows(0, e.text)));
        BONSAI_TRY(run.show(name + "_img", b.stream.slice_rows(e.text, e.image)));
        BONSAI_TRY(run.progress(++done / blocks));
    }
    for (size_t i = 0; i < single_blocks_.size(); ++i) {
        const SingleBlock& w = single_blocks_[i];
        BONSAI_TRY(single_block(run, w, tables, b));
        if (run.streamed) run.done_with({w.qkv, w.mlp_in, w.out});
        BONSAI_TRY(run.show("s0_single" + std::to_string(i), b.stream));
        BONSAI_TRY(run.progress(++done / blocks));
    }
    return Status();
}

// The image rows of the stream, normed once more, as velocities.
Status Transformer::project(const Run& run, const TransformerTables& tables, const Extent& e,
                            const Tensor& stream, const Tensor& velocity) const {
    const int64_t width = config_.width();
    Tensor h; // of floats: the last product is exact
    BONSAI_TRY(run.arena.allocate(e.pictures * e.image, width, &h));
    const Tensor scale = modulation(tables.now.out, 0, width),
                 shift = modulation(tables.now.out, 1, width);
    for (int64_t p = 0; p < e.pictures; ++p) {
        const Tensor image = stream.slice_rows(p * e.tokens() + e.text, e.image);
        const Tensor part = h.slice_rows(p * e.image, e.image);
        BONSAI_TRY(run.backend.layer_norm({image, scale, shift, part, config_.norm_eps}));
        // Each alone: how an exact product is cut may depend on its rows.
        BONSAI_TRY(run.backend.linear(
            exact_linear(part, proj_out_, velocity.slice_rows(p * e.image, e.image))));
    }
    run.arena.release(&h);
    return Status();
}

Status Transformer::evaluate(const Run& run, const TransformerTables& tables, const Tensor& latents,
                             const Tensor& context, const Tensor& velocity) const {
    const int64_t image = tables.cos.rows - context.rows;
    const Extent e{context.rows, image, latents.rows / image};
    Buffers b;
    BONSAI_TRY(allocate(run, e.pictures * e.tokens(), &b));
    BONSAI_TRY(embed(run, latents, context, e, b.stream));
    BONSAI_TRY(run_blocks(run, tables, e, b));
    for (Tensor* tensor : {&b.h, &b.qkv, &b.joined, &b.hidden})
        if (!tensor->empty()) run.arena.release(tensor);
    BONSAI_TRY(project(run, tables, e, b.stream, velocity));
    run.arena.release(&b.stream);
    return Status();
}

} // namespace bonsai
