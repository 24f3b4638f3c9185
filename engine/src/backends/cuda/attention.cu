// SPDX-License-Identifier: Apache-2.0
// attention: which of the kernels of attention.h runs.
#include "backends/cuda/attention.h"
#include "backends/cuda/kernels.h"

namespace bonsai::cuda {

Status attention(const Context& context, const AttentionArgs& args) {
    if (args.head_dim > 128) return attention_wide(context, args);
    const bool exact = context.precision == Precision::kExact;
#if defined(BONSAI_CUDA_HOPPER)
    if (!exact && context.capability == 90 && args.head_dim > 64)
        return attention_hopper(context, args);
#endif
    return attention_mma(context, args, exact);
}

} // namespace bonsai::cuda
