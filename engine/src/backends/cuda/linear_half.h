// SPDX-License-Identifier: Apache-2.0
// linear in 16-bit floats on compute capability 9.0 (linear_half_hopper.cu).
#pragma once

#include "backends/cuda/linear.h"

namespace bonsai::cuda {

// How activations become 16-bit floats: f16 with a power of two a row, in one or two terms, or two
// terms of bf16.
enum class HalfKind { kOne, kPairs, kBrainPairs };

// x[m, k] ~ inverse[m] * (high[m, p] + low[m, p]), p = half_position(k); K a multiple of 128.
struct HalfRows {
    uint16_t* high = nullptr;
    uint16_t* low = nullptr;  // null with one term
    float* inverse = nullptr; // of whole tiles: what lies behind M may hold anything
    int64_t rows = 0, cols = 0;
    bool brain = false; // bf16, f16 otherwise
};

// Where column k stands: within 16, columns 4 q and 4 q + 1 come to 2 q, 4 q + 2 and 4 q + 3 to
// 8 + 2 q. So the four neighbours that a lane unpacks are its share of the A operand.
#if defined(__CUDACC__)
__host__ __device__
#endif
    constexpr int64_t half_position(int64_t k) {
    return (k & ~int64_t{15}) | (k & 2) << 2 | (k & 12) >> 1 | (k & 1);
}

// Whether weights `dtype` meet such x; exact: within 2^-16 of |x| |W|, else 2^-10.
bool linear_half_serves(const Context& context, const LinearArgs& args, DType dtype, bool exact);
// What x has to become for them.
HalfKind half_kind(DType dtype, bool exact);
// f32 x of any stride, in the context's scratch.
Status half_rows(const Context& context, const Tensor& x, HalfKind kind, HalfRows* out);
uint64_t half_rows_bytes(const Tensor& x, HalfKind kind);

// The projections of `args` in `mask`, of one type. args.x tells its shape only.
Status linear_half(const Context& context, const HalfRows& x, const LinearArgs& args,
                   unsigned mask);
uint64_t half_scratch(const Context& context, const LinearArgs& args, unsigned mask); // bytes

} // namespace bonsai::cuda
