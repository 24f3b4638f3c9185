// SPDX-License-Identifier: Apache-2.0
// swiglu: out = gate / (1 + exp(-gate)) * up
// Layout:   f32 rows with strides; out may be gate.
// Roofline: 12 bytes an element: memory-bound. 1024 x 9216: 113 MB.
#include "backends/cuda/kernels.h"
#include "backends/cuda/pointwise.cuh"

namespace bonsai::cuda {

namespace {

struct Swiglu {
    __device__ float operator()(int64_t, float gate, float up) const { return silu_of(gate) * up; }
};

} // namespace

Status swiglu(const Context& context, const SwigluArgs& args) {
    pointwise<true>(context, args.gate, args.up, args.out, Swiglu());
    return check_launch("swiglu");
}

} // namespace bonsai::cuda
