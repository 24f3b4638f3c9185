// SPDX-License-Identifier: Apache-2.0
// silu: out = x / (1 + exp(-x))
// Layout:   f32 rows with strides; out may be x.
// Roofline: 8 bytes an element: memory-bound.
#include "backends/cuda/kernels.h"
#include "backends/cuda/pointwise.cuh"

namespace bonsai::cuda {

namespace {

struct Silu {
    __device__ float operator()(int64_t, float x, float) const { return silu_of(x); }
};

} // namespace

Status silu(const Context& context, const SiluArgs& args) {
    pointwise<false>(context, args.x, args.x, args.out, Silu());
    return check_launch("silu");
}

} // namespace bonsai::cuda
