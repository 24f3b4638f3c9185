// SPDX-License-Identifier: Apache-2.0
// One launcher an op: queues kernels on the context's stream. All addresses are the device's; the
// arguments have passed ops/check.cpp.
#pragma once

#include "backends/cuda/context.h"
#include "ops/ops.h"

namespace bonsai::cuda {

// Whether the current device can run this build's kernels.
Status check_code();

Status linear(const Context& context, const LinearArgs& args);
Status rms_norm(const Context& context, const RmsNormArgs& args);
Status layer_norm(const Context& context, const LayerNormArgs& args);
Status head_norm_rope(const Context& context, const HeadNormRopeArgs& args);
Status attention(const Context& context, const AttentionArgs& args);
Status swiglu(const Context& context, const SwigluArgs& args);
Status silu(const Context& context, const SiluArgs& args);
// Row i of the table is row i of the result: the backend has gathered them; `ids` is null.
Status embed_rows(const Context& context, const EmbedRowsArgs& args);
Status group_norm(const Context& context, const GroupNormArgs& args);
Status affine(const Context& context, const AffineArgs& args);
Status conv2d(const Context& context, const Conv2dArgs& args);

} // namespace bonsai::cuda
