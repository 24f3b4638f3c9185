// SPDX-License-Identifier: Apache-2.0
// The three ways attention is computed; attention.cu chooses.
#pragma once

#include <cuda_fp16.h>

#include "backends/cuda/context.h"
#include "ops/ops.h"

namespace bonsai::cuda {

// Softmax works on powers of two and positive factors: the sign goes into q; 0 becomes q * 0.
inline float base2_scale(float scale) {
    return (scale == 0 ? 1.0f : scale < 0 ? -scale : scale) * 1.4426950408889634f;
}
inline float sign_of(float scale) {
    return scale == 0 ? 0.0f : scale < 0 ? -1.0f : 1.0f;
}

// Heads of up to 128 on any chip: one pass over the keys, mma.sync. Exact: operands as pairs of
// f16.
Status attention_mma(const Context& context, const AttentionArgs& args, bool exact);
uint64_t mma_scratch(const AttentionArgs& args, bool exact); // bytes of it
// The same on Hopper with wgmma and f16 operands, for what hopper_takes accepts.
bool hopper_takes(const AttentionArgs& args);
Status attention_hopper(const Context& context, const AttentionArgs& args);
uint64_t hopper_scratch(const Context& context, const AttentionArgs& args);
// Wider heads: logits of a band of queries in scratch, products by shift_gemm.
Status attention_wide(const Context& context, const AttentionArgs& args);
uint64_t wide_scratch(const Context& context, const AttentionArgs& args);

} // namespace bonsai::cuda
