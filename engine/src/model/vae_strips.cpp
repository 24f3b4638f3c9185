// SPDX-License-Identifier: Apache-2.0
#include "model/vae_strips.h"

namespace bonsai {

GroupNormArgs vae_group_norm(const VaeNorm& norm, const VaeImage& image, int groups, float eps,
                             const Tensor& affine) {
    GroupNormArgs args;
    args.x = image.x, args.gain = norm.gain, args.bias = norm.bias, args.affine = affine;
    args.groups = groups;
    args.eps = eps;
    args.piece = StripChain::kRowUnit * image.width;
    return args;
}

int StripChain::append(Layer layer) {
    layer.wide = layer.conv->weight.cols != channels_in(layer);
    layers_.push_back(layer);
    const int zoom = layers_.front().upsample ? 2 : 1;
    height_ = zoom * source_.height, width_ = zoom * source_.width;
    return static_cast<int>(layers_.size()) - 1;
}

int StripChain::upsample(const VaeConv& conv) {
    Layer layer;
    layer.conv = &conv;
    layer.upsample = true;
    return append(layer);
}

int StripChain::convolve(const VaeConv& conv, const VaeNorm* norm, int input, int add,
                         const Tensor& whole) {
    Layer layer;
    layer.conv = &conv, layer.norm = norm;
    layer.input = input, layer.add = add;
    layer.whole = whole;
    return append(layer);
}

int64_t StripChain::channels_in(const Layer& layer) const {
    return layer.input == kSource ? source_.x.cols
                                  : layers_[static_cast<size_t>(layer.input)].conv->channels();
}

// Who must know the statistics of a layer's result, or of the source.
const StripChain::Layer* StripChain::reader_with_norm(int layer) const {
    for (const Layer& l : layers_)
        if (l.norm && l.input == layer) return &l;
    return nullptr;
}

Tensor StripChain::rows_of(int layer, int64_t begin, int64_t count) {
    if (layer == kSource) return source_.x.slice_rows(begin * source_.width, count * source_.width);
    const Layer& l = at(layer);
    if (!l.whole.empty()) return l.whole.slice_rows(begin * width_, count * width_);
    return l.window.slice_rows((begin - l.first) * width_, count * width_);
}

Status StripChain::run(double begin, double end) {
    const int count = static_cast<int>(layers_.size());
    std::vector<int> targets;
    for (int i = 0; i < count; ++i)
        if (i + 1 == count || reader_with_norm(i)) targets.push_back(i);
    fraction_ = begin;
    const int64_t strips = (height_ + step_ - 1) / step_;
    fraction_step_ =
        (end - begin) / (static_cast<double>(targets.size()) * static_cast<double>(strips));
    for (Layer& l : layers_)
        if (l.norm) BONSAI_TRY(run_.arena.allocate(2, channels_in(l), &l.affine));
    BONSAI_TRY(run_.arena.allocate(6, groups_, &carry_));
    if (const Layer* l = reader_with_norm(kSource))
        BONSAI_TRY(
            run_.backend.group_norm(vae_group_norm(*l->norm, source_, groups_, eps_, l->affine)));
    for (const int target : targets)
        BONSAI_TRY(pass(target));
    for (Layer& l : layers_)
        if (!l.affine.empty()) run_.arena.release(&l.affine);
    run_.arena.release(&carry_);
    return Status();
}

// A layer and those it is made of take part in a pass.
void StripChain::activate(int layer) {
    if (!pending(layer)) return;
    at(layer).active = true;
    activate(at(layer).input);
    activate(at(layer).add);
}

void StripChain::rewind() {
    for (Layer& l : layers_)
        l.first = l.end = 0;
}

// All rows of `target`, and of earlier layers that stay as a whole.
Status StripChain::pass(int target) {
    std::vector<int> kept;
    for (Layer& l : layers_)
        l.active = false, l.held = 0;
    for (int i = 0; i < target; ++i)
        if (pending(i) && !at(i).whole.empty()) kept.push_back(i);
    kept.push_back(target);
    for (const int layer : kept)
        activate(layer);
    measuring_ = true;
    BONSAI_TRY(sweep(target, kept));
    for (Layer& l : layers_)
        if (l.active && l.whole.empty())
            BONSAI_TRY(run_.arena.allocate(l.held * width_, l.conv->channels(), &l.window));
    measuring_ = false;
    BONSAI_TRY(sweep(target, kept));
    for (Layer& l : layers_)
        if (!l.window.empty()) run_.arena.release(&l.window);
    for (const int layer : kept)
        at(layer).complete = !at(layer).whole.empty();
    return Status();
}

Status StripChain::sweep(int target, const std::vector<int>& kept) {
    rewind();
    for (int64_t begin = 0; begin < height_; begin += step_) {
        const int64_t end = std::min(begin + step_, height_);
        for (const int layer : kept)
            BONSAI_TRY(advance(layer, end));
        if (measuring_) continue;
        BONSAI_TRY(add_sums(target, begin, end));
        fraction_ += fraction_step_;
        BONSAI_TRY(run_.progress(fraction_));
    }
    return Status();
}

Status StripChain::advance(int layer, int64_t end) {
    while (at(layer).end < end)
        BONSAI_TRY(make_rows(layer, std::min(at(layer).end + step_, end)));
    return Status();
}

// The first row of a layer that its readers in this pass have yet to read.
int64_t StripChain::first_needed(int layer) const {
    int64_t first = layers_[static_cast<size_t>(layer)].end;
    for (const Layer& l : layers_) {
        if (!l.active) continue;
        if (l.input == layer) first = std::min(first, l.wide ? l.end - 1 : l.end);
        if (l.add == layer) first = std::min(first, l.end);
    }
    return std::max<int64_t>(first, 0);
}

Status StripChain::make_rows(int layer, int64_t end) {
    Layer& l = at(layer);
    const int input = l.input, add = l.add;
    if (pending(input))
        BONSAI_TRY(advance(input, l.wide ? std::min(end + kRowUnit, height_) : end));
    if (pending(add)) BONSAI_TRY(advance(add, end));
    if (l.whole.empty()) BONSAI_TRY(make_room(l, first_needed(layer), end));
    if (!measuring_) BONSAI_TRY(compute(layer, l.end, end));
    l.end = end;
    return Status();
}

// Rows up to `end` are to fit into the window: those that are `needed` move to its begin, in pieces
// as long as the way, so that none overlaps itself.
Status StripChain::make_room(Layer& l, int64_t needed, int64_t end) {
    if (measuring_) {
        l.held = std::max(l.held, end - needed);
        return Status();
    }
    if (end - l.first <= l.held) return Status();
    const int64_t way = needed - l.first, row = width_ * l.window.cols;
    Tensor rows = l.window;
    rows.rows = l.held, rows.cols = rows.stride = row;
    for (int64_t from = way; from < l.end - l.first; from += way) {
        const int64_t count = std::min(way, l.end - l.first - from);
        BONSAI_TRY(
            run_.backend.copy(rows.slice_rows(from, count), rows.slice_rows(from - way, count)));
    }
    l.first = needed;
    return Status();
}

// Rows [begin, end) of a layer.
Status StripChain::compute(int layer, int64_t begin, int64_t end) {
    const Layer& l = at(layer);
    const int zoom = l.upsample ? 2 : 1, border = l.wide ? 1 : 0;
    const int64_t height = l.input == kSource ? source_.height : height_;
    const int64_t top = std::max<int64_t>(0, begin / zoom - border),
                  bottom = std::min(height, end / zoom + border);
    Conv2dArgs args;
    args.x = rows_of(l.input, top, bottom - top);
    args.weight = l.conv->weight, args.bias = l.conv->bias;
    args.affine = l.affine;
    if (l.add != kNone) args.add = rows_of(l.add, begin, end - begin);
    args.out = rows_of(layer, begin, end - begin);
    args.height = bottom - top, args.width = width_ / zoom;
    args.kernel = l.wide ? 3 : 1;
    args.upsample = l.upsample;
    args.above = static_cast<int>(begin / zoom - top);
    args.below = static_cast<int>(bottom - end / zoom);
    return run_.backend.conv2d(args);
}

// The share of rows [begin, end) of a layer in the statistics that the norm of its reader needs.
Status StripChain::add_sums(int layer, int64_t begin, int64_t end) {
    const Layer* reader = reader_with_norm(layer);
    if (!reader) return Status();
    const VaeImage strip = {rows_of(layer, begin, end - begin), end - begin, width_};
    GroupNormArgs args = vae_group_norm(*reader->norm, strip, groups_, eps_, reader->affine);
    args.carry = carry_;
    args.pixels = height_ * width_;
    args.first = begin == 0, args.last = end == height_;
    return run_.backend.group_norm(args);
}

} // namespace bonsai
