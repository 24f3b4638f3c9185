// SPDX-License-Identifier: Apache-2.0
// StripChain: a chain of convolutions over a picture, computed in horizontal strips, for when the
// pictures between them do not fit into memory. The results are those of the whole picture.
//
// Each layer keeps a window of rows that its readers still need and goes along with them, a few
// rows ahead. A GroupNorm needs the statistics of its whole input first, so the chain up to that
// input runs once more for each norm, and nothing but sums is left of it. Rows are cut at multiples
// of four, as the backends' tiles are, so that on the CPU strips give the bytes of the whole.
#pragma once

#include <vector>

#include "model/run.h"

namespace bonsai {

struct VaeNorm {
    Tensor gain, bias; // [1, C]
};
struct VaeConv {
    Tensor weight, bias; // [Cout, k k Cin], [1, Cout]
    int64_t channels() const { return weight.rows; }
    bool empty() const { return weight.empty(); }
};
struct VaeImage {
    Tensor x; // [height * width, C]
    int64_t height, width;
};

// Statistics over `groups` channel groups of the image x: multiplier and offset of each channel.
GroupNormArgs vae_group_norm(const VaeNorm& norm, const VaeImage& image, int groups, float eps,
                             const Tensor& affine);

class StripChain {
  public:
    static constexpr int64_t kRowUnit = 4; // strips are multiples of it
    static constexpr int kSource = -1, kNone = -2;

    // `step`: rows of a strip, a multiple of kRowUnit.
    StripChain(const Run& run, int groups, float eps, const VaeImage& source, int64_t step)
        : run_(run), groups_(groups), eps_(eps), source_(source), step_(step) {}

    // Layers are numbered in order. The first one may double the source, with everything behind it.
    int upsample(const VaeConv& conv);
    // conv(silu(norm(input))) + add; norm may be null (then no SiLU either). `whole`: where all
    // rows stay; empty: in a window. The last layer needs it. It may be the source or what is
    // added, whose rows are read before they are overwritten.
    int convolve(const VaeConv& conv, const VaeNorm* norm, int input, int add = kNone,
                 const Tensor& whole = Tensor());
    // Computes the last layer, and reports fractions from `begin` to `end`.
    Status run(double begin, double end);

  private:
    struct Layer {
        const VaeConv* conv = nullptr;
        const VaeNorm* norm = nullptr;
        int input = kSource;
        int add = kNone;
        bool upsample = false;
        bool wide = true;      // 3x3
        Tensor whole;          // [P, Cout] or empty
        Tensor affine;         // of the norm
        Tensor window;         // [held * width, Cout]
        int64_t first = 0;     // row of the picture at the window's begin
        int64_t end = 0;       // rows computed in this pass
        int64_t held = 0;      // the most rows that the window must hold
        bool active = false;   // in this pass
        bool complete = false; // `whole` holds everything
    };

    Layer& at(int layer) { return layers_[static_cast<size_t>(layer)]; }
    int append(Layer layer);
    const Layer* reader_with_norm(int layer) const;
    bool pending(int layer) const {
        return layer >= 0 && !layers_[static_cast<size_t>(layer)].complete;
    }
    int64_t channels_in(const Layer& layer) const;
    Tensor rows_of(int layer, int64_t begin, int64_t count);
    void activate(int layer);
    void rewind();
    Status pass(int target);
    Status sweep(int target, const std::vector<int>& kept);
    Status advance(int layer, int64_t end);
    Status make_rows(int layer, int64_t end);
    Status make_room(Layer& l, int64_t needed, int64_t end);
    int64_t first_needed(int layer) const;
    Status compute(int layer, int64_t begin, int64_t end);
    Status add_sums(int layer, int64_t begin, int64_t end);

    const Run& run_;
    int groups_;
    float eps_;
    VaeImage source_;
    int64_t step_;
    int64_t height_ = 0, width_ = 0; // of all layers' results
    std::vector<Layer> layers_;
    Tensor carry_;           // of the sums
    bool measuring_ = false; // finds out how many rows the windows must hold
    double fraction_ = 0, fraction_step_ = 0;
};

} // namespace bonsai
