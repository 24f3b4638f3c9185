// SPDX-License-Identifier: Apache-2.0
// One launcher an op: queues kernels on the context's stream. All addresses are the device's; the
// arguments have passed ops/check.cpp. What a launcher takes of the context's scratch, but for some
// KB, *_scratch tells from the same arguments, whose addresses may be any.
#pragma once

#include "backends/cuda/context.h"
#include "ops/ops.h"

namespace bonsai::cuda {

// Whether the current device can run this build's kernels.
Status check_code();

Status linear(const Context& context, const LinearArgs& args);
// Both, in one launch where that is possible.
Status linear_pair(const Context& context, const LinearArgs& a, const LinearArgs& b);
uint64_t linear_scratch(const Context& context, const LinearArgs& args); // bytes
// Whether linear() takes low-bit weights of these args folded (weight_layout.h).
bool linear_folds(const Context& context, const LinearArgs& args);

// Activations as int8: x[m, k] ~ scale[k / group, m] * q[m, k].
struct QuantizedRows {
    int8_t* q = nullptr;        // row m begins at byte m * stride, a multiple of 16
    float* scale = nullptr;     // [K / group rounded up, scale_stride]
    float* block_sum = nullptr; // [K / 32, scale_stride]: sums of q; read for Q4_1 weights only
    int64_t rows = 0, cols = 0; // M, K; K is a multiple of 128
    int64_t stride = 0;
    int64_t scale_stride = 0; // quantized_scale_stride(rows)
    int group = kGroup;       // or 256, or kWideGroup

    // The row of `scale` for columns 128 g to 128 g + 127.
    constexpr int64_t scale_row(int g) const { return g / (group / kGroup); }
};
// Kernels read the scales of whole tiles of tokens: what lies behind M may hold anything.
inline int64_t quantized_scale_stride(int64_t rows) {
    return scale_stride_of(rows);
}
// An I8 matrix, which has no sums.
inline QuantizedRows quantized_rows(const Tensor& x) {
    return {static_cast<int8_t*>(x.data),
            x.scales,
            nullptr,
            x.rows,
            x.cols,
            x.stride,
            x.scale_stride,
            x.scale_group};
}
// Memory for `rows` x `cols` from the context's scratch, and how many bytes that is.
uint64_t quantized_bytes(int64_t rows, int64_t cols, int group);
Status allocate_quantized(const Context& context, int64_t rows, int64_t cols, int group,
                          QuantizedRows* out);
// x f32 or f16. In groups of kGroup the bytes of cpu/generic/quantize.cpp.
Status quantize_rows(const Context& context, const Tensor& x, const QuantizedRows& out);
// linear with an input that is quantised already (args.x tells its shape only); every weight is
// block-quantised, whatever args.exact says.
Status linear_quantized(const Context& context, const QuantizedRows& x, const LinearArgs& args);

Status rms_norm(const Context& context, const RmsNormArgs& args);
Status layer_norm(const Context& context, const LayerNormArgs& args);
Status head_norm_rope(const Context& context, const HeadNormRopeArgs& args);
Status attention(const Context& context, const AttentionArgs& args);
uint64_t attention_scratch(const Context& context, const AttentionArgs& args);
Status swiglu(const Context& context, const SwigluArgs& args);
Status silu(const Context& context, const SiluArgs& args);
// Row i of the table is row i of the result: the backend has gathered them; `ids` is null.
Status embed_rows(const Context& context, const EmbedRowsArgs& args);
Status group_norm(const Context& context, const GroupNormArgs& args);
Status affine(const Context& context, const AffineArgs& args);
Status conv2d(const Context& context, const Conv2dArgs& args);
uint64_t conv2d_scratch(const Context& context, const Conv2dArgs& args);

// A matrix in [-1, 1] as bytes, behind a word that is not 0 if an element is no number.
inline size_t pixel_words(size_t elements) {
    return 1 + (elements + 3) / 4;
}
Status pixels(const Context& context, const Tensor& from, uint32_t* out);

} // namespace bonsai::cuda
