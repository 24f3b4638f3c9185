// SPDX-License-Identifier: Apache-2.0
// The operators of the pipeline: one Args struct each. Shapes are stated here and enforced once, in
// check.cpp; kernels may rely on them and return nothing.
//
// Letters: S tokens (T text + I image), D width, H heads, P pixels of an image (height * width,
// channels last), C channels; M rows, N out features, K in features of a product. Activations are
// f32; operands marked "types.x" may also be what the backend offers as ActivationTypes::x. An
// empty tensor means "absent".
#pragma once

#include "core/status.h"
#include "core/tensor.h"

namespace bonsai {

// In which types a backend would rather see activations whose precision allows it, to move fewer
// bytes. Only between ops on block-quantised weights, and F32 is always taken.
struct ActivationTypes {
    DType product = DType::kF32; // what only linear layers read, which would quantise it: F32 or I8
    DType heads = DType::kF32;   // queries, keys and values: F32 or F16
    DType hidden = DType::kF32;  // gate and up of an MLP: F32 or F16
    // The most inputs of an I8 product that share a scale where all weights are low-bit: kGroup,
    // which is always taken, or kWideGroup, and then 256, too.
    int low_bit_group = kGroup;
    // Columns that rows of I8 lie further apart than they are wide, in whole groups.
    int64_t product_gap = 0;
    int64_t mlp_rows = 1024; // tokens an MLP takes at a time
    // Linear layers may activate what they compute (Projection::activate): gate and up of an MLP
    // are never stored.
    bool activate = false;
};

// One output of a linear layer: y = x W^T + bias, stored, or added to what `out` holds.
struct Projection {
    Tensor weight;           // [N, K], any DType
    Tensor bias;             // [1, N] or empty
    Tensor out;              // [M, N]; types.heads or types.hidden unless accumulate
    bool accumulate = false; // out += gate * y instead of out = y
    Tensor gate;             // [1, N] or empty (ones); only with accumulate
    // out = silu(first half of y) * second half, as wide as a half and of types.product; where
    // types.activate, for x of types.product, without bias.
    bool activate = false;
};

// Up to three projections of the same input: an int8 backend quantises x once for all of them.
struct LinearArgs {
    Tensor x; // [M, K], types.product unless exact; then all weights meet codes (core/dtype.h)
    Projection projections[3];
    int count = 0;
    // Keep float activations even where the backend would quantise them: for inputs with rows of
    // massive outliers.
    bool exact = false;
};

// Of one output: out = x weight^T.
inline LinearArgs linear_args(const Tensor& x, const Tensor& weight, const Tensor& out) {
    LinearArgs args;
    args.x = x;
    args.projections[0].weight = weight;
    args.projections[0].out = out;
    args.count = 1;
    return args;
}

// out = x * rsqrt(mean(x^2) + eps) * gain, row by row.
struct RmsNormArgs {
    Tensor x;    // [S, D]
    Tensor gain; // [1, D]
    Tensor out;  // [S, D], may be x
    float eps = 0;
};

// out = (1 + scale) * LayerNorm(x) + shift; the norm itself has no parameters.
struct LayerNormArgs {
    Tensor x;     // [S, D]
    Tensor scale; // [1, D]
    Tensor shift; // [1, D]
    Tensor out;   // [S, D], types.product
    float eps = 0;
};

enum class RopePairs {
    kHalves,     // (i, i + head_dim / 2): Qwen3
    kNeighbours, // (2i, 2i + 1): FLUX.2
};

// In place on x: RMSNorm of each head with one gain for all heads, then rotation of pair i of row s
// by the angle whose cosine and sine are cos[s, i] and sin[s, i]. The same on `also`, as keys
// beside queries.
struct HeadNormRopeArgs {
    Tensor x;         // [S, H * head_dim], types.heads
    Tensor gain;      // [1, head_dim]
    Tensor also;      // [at most S, any number of heads] of x's type, or empty
    Tensor also_gain; // [1, head_dim]
    Tensor cos;       // [S, head_dim / 2]
    Tensor sin;       // [S, head_dim / 2]
    int head_dim = 0;
    RopePairs pairs = RopePairs::kNeighbours;
    float eps = 0;
};

// out = softmax(scale * q k^T) v for each head; query head h reads key head h / (heads / kv_heads).
struct AttentionArgs {
    Tensor q;   // [Sq, heads * head_dim], types.heads, all three alike
    Tensor k;   // [Sk, kv_heads * head_dim]
    Tensor v;   // [Sk, kv_heads * head_dim]
    Tensor out; // [Sq, heads * head_dim], types.product
    int heads = 0;
    int kv_heads = 0;
    int head_dim = 0; // a multiple of 8
    float scale = 0;
    bool causal = false; // query i sees keys j <= i
};

// out = silu(gate) * up
struct SwigluArgs {
    Tensor gate; // [S, D], types.hidden, both alike
    Tensor up;   // [S, D]
    Tensor out;  // [S, D], types.product; may be gate if both are f32
};

struct SiluArgs {
    Tensor x;   // [S, D]
    Tensor out; // [S, D], may be x
};

// out[i] = table[ids[i]]
struct EmbedRowsArgs {
    Tensor table;                 // [V, D], any DType
    const int32_t* ids = nullptr; // host memory, out.rows entries in [0, V)
    Tensor out;                   // [S, D]
};

// GroupNorm reduced to one multiplier and one offset a channel: norm(x)[p, c] = affine[0, c] * x[p,
// c] + affine[1, c]. Statistics of a group are taken over all pixels and its C / groups channels.
// A picture may come as strips of rows, from the top: all but the last only add to `carry`. Where
// strips are whole `piece`s, the CPU gives the bytes that the whole gives.
struct GroupNormArgs {
    Tensor x;      // [P, C]
    Tensor gain;   // [1, C]
    Tensor bias;   // [1, C]
    Tensor affine; // [2, C], output; with `carry` only of the last strip
    int groups = 0;
    float eps = 0;
    int64_t piece = 1024; // pixels whose sums are formed one after another
    Tensor carry = {};  // [6, groups], the backend's own form of the sums so far; empty: no strips
    int64_t pixels = 0; // of the whole picture; only with carry
    bool first = true, last = true; // strip
};

// out = affine[0] * x + affine[1], channel by channel.
struct AffineArgs {
    Tensor x;      // [P, C]
    Tensor affine; // [2, C]
    Tensor out;    // [P, C], may be x
};

// 3x3 or 1x1 convolution, stride 1, zero padding that keeps the size. The input is read through
//   optional affine + SiLU (a folded GroupNorm; padding stays zero after it), then optional
//   nearest-neighbour doubling. Of a picture in strips, x may hold a row above and one below those
//   that become output: they take the place of the padding there.
struct Conv2dArgs {
    Tensor x;      // [height * width, Cin]
    Tensor weight; // [Cout, kernel * kernel * Cin], F32, F16 or BF16; taps in rows, channels
                   // innermost (OHWI)
    Tensor bias;   // [1, Cout] or empty
    Tensor affine; // [2, Cin] or empty; SiLU follows when present
    Tensor add;    // [P, Cout] or empty: added to the result; may be `out`
    Tensor out; // [P, Cout], P = (height - above - below) * width, or 4 times that when upsampling
    int64_t height = 0;
    int64_t width = 0;
    int kernel = 3;
    bool upsample = false;
    int above = 0, below = 0; // rows of x, 0 or 1, that are only neighbours of others

    int zoom() const { return upsample ? 2 : 1; }
    int64_t out_height() const { return (height - above - below) * zoom(); }
};

// Shape and type rules; the message names op, operand, expected and found.
Status check(const LinearArgs& args, const ActivationTypes& types = {});
Status check(const RmsNormArgs& args, const ActivationTypes& types = {});
Status check(const LayerNormArgs& args, const ActivationTypes& types = {});
Status check(const HeadNormRopeArgs& args, const ActivationTypes& types = {});
Status check(const AttentionArgs& args, const ActivationTypes& types = {});
Status check(const SwigluArgs& args, const ActivationTypes& types = {});
Status check(const SiluArgs& args, const ActivationTypes& types = {});
Status check(const EmbedRowsArgs& args, const ActivationTypes& types = {});
Status check(const GroupNormArgs& args, const ActivationTypes& types = {});
Status check(const AffineArgs& args, const ActivationTypes& types = {});
Status check(const Conv2dArgs& args, const ActivationTypes& types = {});

} // namespace bonsai
