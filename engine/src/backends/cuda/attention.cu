// SPDX-License-Identifier: Apache-2.0
// attention: which of the kernels of attention.h runs. q, k, v are all f32 or all f16; out is f32,
// or I8.
#include "backends/cuda/attention.h"
#include "backends/cuda/kernels.h"

namespace bonsai::cuda {

static bool is_exact(const Context& context, const AttentionArgs& args) {
    return context.precision == Precision::kExact && args.q.dtype == DType::kF32;
}

// To f32.
static Status attention_f32(const Context& context, const AttentionArgs& args) {
    if (args.head_dim > 128) return attention_wide(context, args);
    return attention_mma(context, args, is_exact(context, args));
}

static bool on_hopper(const Context& context, const AttentionArgs& args) {
#if defined(BONSAI_CUDA_HOPPER)
    return context.precision == Precision::kFast && context.capability == 90 && hopper_takes(args);
#else
    (void)context, (void)args;
    return false;
#endif
}

uint64_t attention_scratch(const Context& context, const AttentionArgs& args) {
    if (on_hopper(context, args)) return hopper_scratch(context, args);
    const uint64_t floats =
        args.out.dtype == DType::kI8 ? static_cast<uint64_t>(args.out.rows * args.out.cols) * 4 : 0;
    return floats + (args.head_dim > 128 ? wide_scratch(context, args)
                                         : mma_scratch(args, is_exact(context, args)));
}

Status attention(const Context& context, const AttentionArgs& args) {
    if (on_hopper(context, args)) return attention_hopper(context, args);
    if (args.out.dtype != DType::kI8) return attention_f32(context, args);
    AttentionArgs there = args;
    float* room = nullptr;
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(args.out.rows * args.out.cols), &room));
    there.out = f32_matrix(room, args.out.rows, args.out.cols);
    BONSAI_TRY(attention_f32(context, there));
    return quantize_rows(context, there.out, quantized_rows(args.out));
}

} // namespace bonsai::cuda
