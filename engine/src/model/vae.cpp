// SPDX-License-Identifier: Apache-2.0
#include "model/vae.h"

#include <cmath>

namespace bonsai {

namespace {

constexpr double kMidShare = 0.1; // of the stage's time
constexpr int64_t kMostRows = 256, kLeastKept = 16;

// Heights of strips to try for a picture, the fastest first.
std::vector<int64_t> strip_steps(int64_t height, int64_t least) {
    std::vector<int64_t> steps;
    for (int64_t step = kMostRows; step >= least; step /= 2)
        if (step < height || step == least) steps.push_back(step);
    return steps;
}

} // namespace

Status VaeDecoder::load_norm(const std::string& name, int64_t channels, WeightLoader& loader,
                             Norm* out) {
    BONSAI_TRY(loader.vector(name + ".weight", channels, &weights_, &out->gain));
    return loader.vector(name + ".bias", channels, &weights_, &out->bias);
}

Status VaeDecoder::load_conv(const std::string& name, int64_t in, int64_t out, int64_t kernel,
                             WeightLoader& loader, Conv* conv) {
    BONSAI_TRY(
        loader.matrix(name + ".weight", out, kernel * kernel * in, &weights_, &conv->weight));
    return loader.vector(name + ".bias", out, &weights_, &conv->bias);
}

Status VaeDecoder::load_res(const std::string& name, int64_t in, int64_t out, WeightLoader& loader,
                            ResBlock* block) {
    BONSAI_TRY(load_norm(name + ".norm1", in, loader, &block->norm1));
    BONSAI_TRY(load_conv(name + ".conv1", in, out, 3, loader, &block->conv1));
    BONSAI_TRY(load_norm(name + ".norm2", out, loader, &block->norm2));
    BONSAI_TRY(load_conv(name + ".conv2", out, out, 3, loader, &block->conv2));
    return in == out ? Status()
                     : load_conv(name + ".conv_shortcut", in, out, 1, loader, &block->shortcut);
}

Status VaeDecoder::load_attention(const std::string& name, int64_t channels, WeightLoader& loader) {
    BONSAI_TRY(load_norm(name + ".group_norm", channels, loader, &attention_.norm));
    BONSAI_TRY(load_conv(name + ".to_q", channels, channels, 1, loader, &attention_.q));
    BONSAI_TRY(load_conv(name + ".to_k", channels, channels, 1, loader, &attention_.k));
    BONSAI_TRY(load_conv(name + ".to_v", channels, channels, 1, loader, &attention_.v));
    return load_conv(name + ".to_out.0", channels, channels, 1, loader, &attention_.out);
}

Status VaeDecoder::load(const VaeConfig& c, WeightLoader& loader) {
    config_ = c;
    const std::vector<int64_t> widths(c.decoder_widths.rbegin(),
                                      c.decoder_widths.rend()); // from the latents up
    const int64_t first = widths.front();
    BONSAI_TRY(load_conv("vae.post_quant_conv", c.latent_channels, c.latent_channels, 1, loader,
                         &post_quant_));
    BONSAI_TRY(load_conv("vae.decoder.conv_in", c.latent_channels, first, 3, loader, &conv_in_));
    BONSAI_TRY(load_res("vae.decoder.mid_block.resnets.0", first, first, loader, &mid_[0]));
    if (c.mid_attention)
        BONSAI_TRY(load_attention("vae.decoder.mid_block.attentions.0", first, loader));
    BONSAI_TRY(load_res("vae.decoder.mid_block.resnets.1", first, first, loader, &mid_[1]));
    up_.resize(widths.size());
    int64_t in = first;
    for (size_t i = 0; i < up_.size(); ++i) {
        const std::string name = "vae.decoder.up_blocks." + std::to_string(i);
        up_[i].res.resize(static_cast<size_t>(c.layers_per_block + 1));
        for (size_t j = 0; j < up_[i].res.size(); ++j) {
            BONSAI_TRY(load_res(name + ".resnets." + std::to_string(j), in, widths[i], loader,
                                &up_[i].res[j]));
            in = widths[i];
        }
        if (i + 1 < up_.size())
            BONSAI_TRY(load_conv(name + ".upsamplers.0.conv", in, in, 3, loader, &up_[i].upsample));
    }
    BONSAI_TRY(load_norm("vae.decoder.conv_norm_out", in, loader, &norm_out_));
    BONSAI_TRY(load_conv("vae.decoder.conv_out", in, 3, 3, loader, &conv_out_));

    BONSAI_TRY(loader.host_vector("vae.bn.running_mean", 4 * c.latent_channels, &mean_));
    BONSAI_TRY(loader.host_vector("vae.bn.running_var", 4 * c.latent_channels, &deviation_));
    for (float& value : deviation_)
        value = std::sqrt(value + c.bn_eps);
    return Status();
}

void VaeDecoder::unpack_tokens(const float* tokens, int64_t height, int64_t width,
                               float* latents) const {
    const int64_t channels = config_.latent_channels, features = 4 * channels;
    for (int64_t y = 0; y < 2 * height; ++y) {
        for (int64_t x = 0; x < 2 * width; ++x) {
            const float* token = tokens + ((y / 2) * width + x / 2) * features;
            float* pixel = latents + (y * 2 * width + x) * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const int64_t feature = 4 * c + 2 * (y % 2) + x % 2;
                pixel[c] = token[feature] * deviation_[static_cast<size_t>(feature)] +
                           mean_[static_cast<size_t>(feature)];
            }
        }
    }
}

Status VaeDecoder::group_norm(const Run& run, const Norm& norm, const Image& image,
                              Tensor* affine) const {
    BONSAI_TRY(run.arena.allocate(2, image.x.cols, affine));
    return run.backend.group_norm(vae_group_norm(norm, image, static_cast<int>(config_.norm_groups),
                                                 config_.norm_eps, *affine));
}

// out = conv(silu(norm(in))) + add; norm may be null (then no SiLU either), add empty.
Status VaeDecoder::convolve(const Run& run, const Conv& conv, const Image& in, const Norm* norm,
                            bool upsample, const Tensor& add, const Tensor& out) const {
    Conv2dArgs args;
    args.x = in.x, args.weight = conv.weight, args.bias = conv.bias, args.add = add, args.out = out;
    args.height = in.height, args.width = in.width;
    args.kernel = conv.weight.cols == in.x.cols ? 1 : 3;
    args.upsample = upsample;
    if (norm) BONSAI_TRY(group_norm(run, *norm, in, &args.affine));
    BONSAI_TRY(run.backend.conv2d(args));
    if (norm) run.arena.release(&args.affine);
    return Status();
}

Status VaeDecoder::res_block(const Run& run, const ResBlock& block, Image* image) const {
    Tensor h, out = image->x;
    BONSAI_TRY(run.arena.allocate(image->x.rows, block.conv1.weight.rows, &h));
    BONSAI_TRY(convolve(run, block.conv1, *image, &block.norm1, false, Tensor(), h));
    if (!block.shortcut.empty()) {
        BONSAI_TRY(run.arena.allocate(image->x.rows, h.cols, &out));
        BONSAI_TRY(convolve(run, block.shortcut, *image, nullptr, false, Tensor(), out));
        run.arena.release(&image->x);
        image->x = out;
    }
    BONSAI_TRY(convolve(run, block.conv2, {h, image->height, image->width}, &block.norm2, false,
                        out, out));
    run.arena.release(&h);
    return Status();
}

// One head over all pixels.
Status VaeDecoder::attention(const Run& run, Image* image) const {
    const int64_t pixels = image->x.rows, channels = image->x.cols;
    Tensor h, q, k, v, affine;
    for (Tensor* t : {&h, &q, &k, &v})
        BONSAI_TRY(run.arena.allocate(pixels, channels, t));
    BONSAI_TRY(group_norm(run, attention_.norm, *image, &affine));
    BONSAI_TRY(run.backend.affine({image->x, affine, h}));
    LinearArgs qkv = linear_args(h, attention_.q.weight, q);
    qkv.projections[0].bias = attention_.q.bias;
    qkv.projections[1].weight = attention_.k.weight, qkv.projections[1].bias = attention_.k.bias,
    qkv.projections[1].out = k;
    qkv.projections[2].weight = attention_.v.weight, qkv.projections[2].bias = attention_.v.bias,
    qkv.projections[2].out = v;
    qkv.count = 3;
    BONSAI_TRY(run.backend.linear(qkv));
    AttentionArgs args;
    args.q = q, args.k = k, args.v = v, args.out = h;
    args.heads = args.kv_heads = 1;
    args.head_dim = static_cast<int>(channels);
    args.scale = 1.0f / std::sqrt(static_cast<float>(channels));
    BONSAI_TRY(run.backend.attention(args));
    LinearArgs out = linear_add_args(h, attention_.out.weight, image->x);
    out.projections[0].bias = attention_.out.bias;
    BONSAI_TRY(run.backend.linear(out));
    for (Tensor* t : {&h, &q, &k, &v, &affine})
        run.arena.release(t);
    return Status();
}

Status VaeDecoder::mid(const Run& run, const Tensor& latents, Image* image) const {
    const int64_t height = image->height, width = image->width;
    Tensor quantised;
    BONSAI_TRY(run.arena.allocate(latents.rows, latents.cols, &quantised));
    BONSAI_TRY(
        convolve(run, post_quant_, {latents, height, width}, nullptr, false, Tensor(), quantised));
    BONSAI_TRY(run.arena.allocate(latents.rows, conv_in_.channels(), &image->x));
    BONSAI_TRY(
        convolve(run, conv_in_, {quantised, height, width}, nullptr, false, Tensor(), image->x));
    run.arena.release(&quantised);
    BONSAI_TRY(run.show("vae_conv_in", image->x));
    BONSAI_TRY(res_block(run, mid_[0], image));
    if (config_.mid_attention) BONSAI_TRY(attention(run, image));
    BONSAI_TRY(res_block(run, mid_[1], image));
    return run.show("vae_mid", image->x);
}

// The end of up block i.
Status VaeDecoder::upsample(const Run& run, size_t i, Image* image) const {
    const Conv& conv = up_[i].upsample;
    Tensor out;
    BONSAI_TRY(run.arena.allocate(4 * image->x.rows, conv.channels(), &out));
    BONSAI_TRY(convolve(run, conv, *image, nullptr, true, Tensor(), out));
    run.arena.release(&image->x);
    *image = {out, 2 * image->height, 2 * image->width};
    return run.show("vae_up" + std::to_string(i), image->x);
}

// The first of the ways, which are in order of their time, that the budget allows.
Status VaeDecoder::take(const Run& run, uint64_t budget, const std::vector<Way>& ways,
                        Image* image) const {
    if (budget == kUnlimited) return ways.front()(run, image);
    for (size_t i = 0; i + 1 < ways.size(); ++i) {
        PlanBackend backend(run.backend);
        const std::unique_ptr<Arena> arena = run.arena.trial();
        Image copy = *image;
        BONSAI_TRY(ways[i](Run{backend, *arena, nullptr, nullptr}, &copy));
        if (arena->peak() <= budget) return ways[i](run, image);
    }
    return ways.back()(run, image);
}

StripChain VaeDecoder::chain(const Run& run, const Image& image, int64_t step) const {
    return StripChain(run, static_cast<int>(config_.norm_groups), config_.norm_eps, image, step);
}

// A residual block of the layer x.
int VaeDecoder::add_res(const ResBlock& block, int x, const KeptRows& kept, StripChain* strips) {
    const bool same = block.shortcut.empty();
    const int skip =
        same ? x : strips->convolve(block.shortcut, nullptr, x, StripChain::kNone, kept.skip);
    const int h = strips->convolve(block.conv1, &block.norm1, x, StripChain::kNone, kept.h);
    return strips->convolve(block.conv2, &block.norm2, h, skip, kept.out);
}

// upsample(i - 1) and the first residual block of level i. `keep`: what the block's first
// convolution and its shortcut give stays as a whole, so that all comes from the wide upsampled
// picture twice and not three times.
Status VaeDecoder::enter_in_strips(const Run& run, size_t i, int64_t step, bool keep,
                                   const Share& share, Image* image) const {
    const ResBlock& block = up_[i].res.front();
    Tensor out, h;
    BONSAI_TRY(run.arena.allocate(4 * image->x.rows, block.conv2.channels(), &out));
    if (keep) BONSAI_TRY(run.arena.allocate(4 * image->x.rows, block.conv1.channels(), &h));
    StripChain strips = chain(run, *image, step);
    const int up = strips.upsample(up_[i - 1].upsample);
    add_res(block, up, {keep ? out : Tensor(), h, out}, &strips);
    BONSAI_TRY(strips.run(share.begin, share.end));
    if (keep) run.arena.release(&h);
    run.arena.release(&image->x);
    *image = {out, 2 * image->height, 2 * image->width};
    return Status();
}

// In place: what the first convolution gives is computed twice.
Status VaeDecoder::res_in_strips(const Run& run, const ResBlock& block, int64_t step,
                                 const Share& share, Image* image) const {
    StripChain strips = chain(run, *image, step);
    add_res(block, StripChain::kSource, {Tensor(), Tensor(), image->x}, &strips);
    return strips.run(share.begin, share.end);
}

// From the last upsampling to the pixels with nothing of full size in memory: all of it anew for
// each norm.
Status VaeDecoder::end_in_strips(const Run& run, int64_t step, const Share& share,
                                 const Tensor& pixels, Image* image) const {
    const size_t last = up_.size() - 1;
    StripChain strips = chain(run, *image, step);
    int x = strips.upsample(up_[last - 1].upsample);
    for (const ResBlock& block : up_[last].res)
        x = add_res(block, x, {}, &strips);
    strips.convolve(conv_out_, &norm_out_, x, StripChain::kNone, pixels);
    BONSAI_TRY(strips.run(share.begin, share.end));
    run.arena.release(&image->x);
    return Status();
}

// The residual blocks of a level, from the end of the one below it on.
Status VaeDecoder::level(const Run& run, size_t i, const Share& share, Image* image) const {
    const std::vector<ResBlock>& blocks = up_[i].res;
    const int64_t height = (i > 0 ? 2 : 1) * image->height;
    for (size_t j = 0; j < blocks.size(); ++j) {
        const ResBlock& block = blocks[j];
        const bool enters = i > 0 && j == 0;
        const double part = (share.end - share.begin) / static_cast<double>(blocks.size());
        const Share own = {share.budget, share.begin + part * static_cast<double>(j),
                           share.begin + part * static_cast<double>(j + 1)};
        std::vector<Way> ways = {[&](const Run& r, Image* x) {
            if (enters) BONSAI_TRY(upsample(r, i - 1, x));
            return res_block(r, block, x);
        }};
        if (enters && !block.shortcut.empty())
            for (const int64_t step : strip_steps(height, kLeastKept))
                ways.push_back([&, step](const Run& r, Image* x) {
                    return enter_in_strips(r, i, step, true, own, x);
                });
        if (enters || block.shortcut.empty())
            for (const int64_t step : strip_steps(height, StripChain::kRowUnit))
                ways.push_back([&, step](const Run& r, Image* x) {
                    return enters ? enter_in_strips(r, i, step, false, own, x)
                                  : res_in_strips(r, block, step, own, x);
                });
        BONSAI_TRY(take(run, share.budget, ways, image));
        BONSAI_TRY(run.progress(own.end));
    }
    return Status();
}

Status VaeDecoder::last_level(const Run& run, const Share& share, const Tensor& pixels,
                              Image* image) const {
    const size_t last = up_.size() - 1;
    std::vector<Way> ways = {[&](const Run& r, Image* x) {
        BONSAI_TRY(level(r, last, share, x));
        BONSAI_TRY(r.show("vae_up" + std::to_string(last), x->x));
        BONSAI_TRY(convolve(r, conv_out_, *x, &norm_out_, false, Tensor(), pixels));
        r.arena.release(&x->x);
        return Status();
    }};
    if (last > 0)
        for (const int64_t step : strip_steps(2 * image->height, StripChain::kRowUnit))
            ways.push_back([&, step](const Run& r, Image* x) {
                return end_in_strips(r, step, share, pixels, x);
            });
    return take(run, share.budget, ways, image);
}

Status VaeDecoder::decode(const Run& run, const Tensor& latents, int64_t height, int64_t width,
                          uint64_t budget, const Tensor& pixels) const {
    Image image{Tensor(), height, width};
    BONSAI_TRY(mid(run, latents, &image));
    BONSAI_TRY(run.progress(kMidShare));
    const double part = (1.0 - kMidShare) / static_cast<double>(up_.size());
    for (size_t i = 0; i < up_.size(); ++i) {
        const double begin = kMidShare + part * static_cast<double>(i);
        const Share share = {budget, begin, begin + part};
        BONSAI_TRY(i + 1 < up_.size() ? level(run, i, share, &image)
                                      : last_level(run, share, pixels, &image));
    }
    return run.progress(1.0);
}

} // namespace bonsai
