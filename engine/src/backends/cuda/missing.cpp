// SPDX-License-Identifier: Apache-2.0
// Launchers that no other file defines answer that they are not there.
#include "backends/cuda/kernels.h"

namespace bonsai::cuda {

namespace {

Status missing(const char* op) {
    return fail(ErrorCode::kUnsupported, "the CUDA backend of this build does not offer %s", op);
}

} // namespace

[[gnu::weak]] Status linear(const Context&, const LinearArgs&) {
    return missing("linear");
}
[[gnu::weak]] Status attention(const Context&, const AttentionArgs&) {
    return missing("attention");
}
[[gnu::weak]] Status group_norm(const Context&, const GroupNormArgs&) {
    return missing("group_norm");
}
[[gnu::weak]] Status conv2d(const Context&, const Conv2dArgs&) {
    return missing("conv2d");
}

} // namespace bonsai::cuda
