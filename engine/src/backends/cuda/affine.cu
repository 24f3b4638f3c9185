// SPDX-License-Identifier: Apache-2.0
// affine: out[p, c] = affine[0, c] * x[p, c] + affine[1, c]
// Layout:   f32 rows with strides; out may be x.
// Roofline: 8 bytes an element: memory-bound.
#include "backends/cuda/kernels.h"
#include "backends/cuda/pointwise.cuh"

namespace bonsai::cuda {

namespace {

struct Affine {
    const float *multiplier, *offset;
    __device__ float operator()(int64_t c, float x, float) const {
        return fmaf(multiplier[c], x, offset[c]);
    }
};

} // namespace

Status affine(const Context& context, const AffineArgs& args) {
    const Affine f{args.affine.row(0), args.affine.row(1)};
    pointwise<false>(context, args.x, args.x, args.out, f);
    return check_launch("affine");
}

} // namespace bonsai::cuda
