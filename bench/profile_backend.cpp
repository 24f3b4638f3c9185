// SPDX-License-Identifier: Apache-2.0
#include "profile_backend.h"

#include <chrono>
#include <ctime>

namespace bonsai::bench {

namespace {

std::string shape(int64_t rows, int64_t cols) {
    return std::to_string(rows) + "x" + std::to_string(cols);
}

double product(double a, double b, double c) {
    return 2 * a * b * c * 1e-9;
}

} // namespace

Clock Clock::now() {
    const auto wall = std::chrono::steady_clock::now().time_since_epoch();
    return {std::chrono::duration<double>(wall).count(),
            static_cast<double>(std::clock()) / CLOCKS_PER_SEC};
}

template <typename Args>
Status ProfileBackend::timed(const std::string& name, double ops, bool bytes, const Args& args,
                             Status (Backend::*op)(const Args&)) {
    const Clock start = Clock::now();
    BONSAI_TRY((inner().*op)(args));
    BONSAI_TRY(synchronize());
    const Clock end = Clock::now();
    OpTotal& total = totals_[stage_][name];
    ++total.calls;
    total.wall += end.wall - start.wall;
    total.cpu += end.cpu - start.cpu;
    total.giga_ops += ops;
    total.bytes = bytes;
    return Status();
}

// One line for each width of fused projections; their types are equal.
Status ProfileBackend::do_linear(const LinearArgs& args) {
    int64_t out = 0;
    for (int i = 0; i < args.count; ++i)
        out += args.projections[i].weight.rows;
    const DType dtype = args.projections[0].weight.dtype;
    const bool bytes = precision_ == Precision::kFast && !args.exact && is_block_quantized(dtype);
    return timed(std::string("linear ") + dtype_info(dtype).name + " " +
                     shape(args.x.rows, args.x.cols) + "x" + std::to_string(out),
                 product(static_cast<double>(args.x.rows), static_cast<double>(args.x.cols),
                         static_cast<double>(out)),
                 bytes, args, &Backend::linear);
}

// Of a causal product half is counted.
Status ProfileBackend::do_attention(const AttentionArgs& args) {
    const double ops =
        2 *
        product(static_cast<double>(args.q.rows), static_cast<double>(args.k.rows), args.head_dim) *
        args.heads * (args.causal ? 0.5 : 1);
    return timed("attention " + shape(args.q.rows, args.k.rows) + " " + std::to_string(args.heads) +
                     "x" + std::to_string(args.head_dim) + (args.causal ? " causal" : ""),
                 ops, false, args, &Backend::attention);
}

Status ProfileBackend::do_conv2d(const Conv2dArgs& args) {
    const double ops =
        product(static_cast<double>(args.out.rows), static_cast<double>(args.out.cols),
                static_cast<double>(args.weight.cols));
    return timed("conv2d " + shape(args.kernel, args.kernel) + " " + std::to_string(args.x.cols) +
                     "->" + std::to_string(args.out.cols) + " " + shape(args.width, args.height) +
                     (args.upsample ? " doubled" : ""),
                 ops, false, args, &Backend::conv2d);
}

Status ProfileBackend::do_rms_norm(const RmsNormArgs& args) {
    return timed("rms_norm " + shape(args.x.rows, args.x.cols), 0, false, args, &Backend::rms_norm);
}

Status ProfileBackend::do_layer_norm(const LayerNormArgs& args) {
    return timed("layer_norm " + shape(args.x.rows, args.x.cols), 0, false, args,
                 &Backend::layer_norm);
}

Status ProfileBackend::do_head_norm_rope(const HeadNormRopeArgs& args) {
    return timed("head_norm_rope " + shape(args.x.rows, args.x.cols), 0, false, args,
                 &Backend::head_norm_rope);
}

Status ProfileBackend::do_swiglu(const SwigluArgs& args) {
    return timed("swiglu " + shape(args.out.rows, args.out.cols), 0, false, args, &Backend::swiglu);
}

Status ProfileBackend::do_silu(const SiluArgs& args) {
    return timed("silu " + shape(args.x.rows, args.x.cols), 0, false, args, &Backend::silu);
}

Status ProfileBackend::do_embed_rows(const EmbedRowsArgs& args) {
    return timed("embed_rows " + shape(args.out.rows, args.out.cols), 0, false, args,
                 &Backend::embed_rows);
}

Status ProfileBackend::do_group_norm(const GroupNormArgs& args) {
    return timed("group_norm " + shape(args.x.rows, args.x.cols), 0, false, args,
                 &Backend::group_norm);
}

Status ProfileBackend::do_affine(const AffineArgs& args) {
    return timed("affine " + shape(args.x.rows, args.x.cols), 0, false, args, &Backend::affine);
}

} // namespace bonsai::bench
