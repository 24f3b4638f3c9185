// SPDX-License-Identifier: Apache-2.0
// VaeDecoder: latents to pixels. All images are matrices [pixels, channels]; a GroupNorm is folded
// into the convolution that follows it. Where memory is short, parts of it work in strips.
#pragma once

#include "model/config.h"
#include "model/vae_strips.h"
#include "model/weights.h"

namespace bonsai {

class VaeDecoder {
  public:
    // Pixels a latent pixel becomes along each side.
    static constexpr int64_t kScale = 8;
    static constexpr uint64_t kUnlimited = UINT64_MAX;

    Status load(const VaeConfig& config, WeightLoader& loader);

    // latents [height * width, latent channels], not normalised -> pixels [64 * height * width, 3],
    // about -1 to 1. Each part takes the fastest way in which the arena stays within `budget`
    // bytes, or the one that takes least; all ways give the same pixels.
    Status decode(const Run& run, const Tensor& latents, int64_t height, int64_t width,
                  uint64_t budget, const Tensor& pixels) const;

    // Transformer tokens [height * width, 4 * latent channels] to latents [4 * height * width,
    // latent channels]: undoes the normalisation and the 2x2 patches. Feature 4 c + 2 dy + dx of
    // token (r, c') is channel c of pixel (2 r + dy, 2 c' + dx).
    void unpack_tokens(const float* tokens, int64_t height, int64_t width, float* latents) const;

    const WeightSet& weights() const { return weights_; }

  private:
    using Norm = VaeNorm;
    using Conv = VaeConv;
    struct ResBlock {
        Norm norm1, norm2;
        Conv conv1, conv2, shortcut; // shortcut is 1x1, empty when the widths agree
    };
    struct Attention {
        Norm norm;
        Conv q, k, v, out; // [C, C]
    };
    struct UpBlock {
        std::vector<ResBlock> res;
        Conv upsample; // empty in the last
    };
    using Image = VaeImage; // the picture on its way: released and replaced by each layer
    // One way to compute a part of the decoder.
    using Way = std::function<Status(const Run& run, Image* image)>;
    // What a part works with: the memory it may use, and the share of the stage that it is.
    struct Share {
        uint64_t budget;
        double begin, end;
    };
    Status load_norm(const std::string& name, int64_t channels, WeightLoader& loader, Norm* out);
    Status load_conv(const std::string& name, int64_t in, int64_t out, int64_t kernel,
                     WeightLoader& loader, Conv* conv);
    Status load_res(const std::string& name, int64_t in, int64_t out, WeightLoader& loader,
                    ResBlock* block);
    Status load_attention(const std::string& name, int64_t channels, WeightLoader& loader);
    Status convolve(const Run& run, const Conv& conv, const Image& in, const Norm* norm,
                    bool upsample, const Tensor& add, const Tensor& out) const;
    Status res_block(const Run& run, const ResBlock& block, Image* image) const;
    Status attention(const Run& run, Image* image) const;
    Status mid(const Run& run, const Tensor& latents, Image* image) const;
    Status level(const Run& run, size_t i, const Share& share, Image* image) const;
    Status last_level(const Run& run, const Share& share, const Tensor& pixels, Image* image) const;
    Status take(const Run& run, uint64_t budget, const std::vector<Way>& ways, Image* image) const;
    Status upsample(const Run& run, size_t i, Image* image) const;
    // Where the layers of a residual block keep all rows of theirs; empty: in windows.
    struct KeptRows {
        Tensor skip, h, out;
    };
    static int add_res(const ResBlock& block, int x, const KeptRows& kept, StripChain* strips);
    StripChain chain(const Run& run, const Image& image, int64_t step) const;
    Status enter_in_strips(const Run& run, size_t i, int64_t step, bool keep, const Share& share,
                           Image* image) const;
    Status res_in_strips(const Run& run, const ResBlock& block, int64_t step, const Share& share,
                         Image* image) const;
    Status end_in_strips(const Run& run, int64_t step, const Share& share, const Tensor& pixels,
                         Image* image) const;
    Status group_norm(const Run& run, const Norm& norm, const Image& image, Tensor* affine) const;

    VaeConfig config_;
    WeightSet weights_;
    Conv post_quant_, conv_in_, conv_out_;
    ResBlock mid_[2];
    Attention attention_;
    std::vector<UpBlock> up_;
    Norm norm_out_;
    std::vector<float> mean_,
        deviation_; // of the normalised latents, one for each transformer channel
};

} // namespace bonsai
