// SPDX-License-Identifier: Apache-2.0
// The operators of ops/ops.h as their formulas read, in double and without any thought of speed:
// what every backend is measured against.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace bonsai {

// A matrix in host memory, row after row.
template <typename T> struct Grid {
    int64_t rows = 0, cols = 0;
    std::vector<T> values;

    Grid() = default;
    Grid(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
    T& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
    T at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};
using Floats = Grid<float>;
using Numbers = Grid<double>;

namespace formula {

double silu(double x);
// x W^T + bias; bias may be empty.
Numbers linear(const Floats& x, const Floats& weight, const Floats& bias);
Numbers rms_norm(const Floats& x, const Floats& gain, double eps);
Numbers layer_norm(const Floats& x, const Floats& scale, const Floats& shift, double eps);
Numbers head_norm_rope(const Floats& x, const Floats& gain, const Floats& cos, const Floats& sin,
                       RopePairs pairs, double eps);

struct AttentionShape {
    int heads, kv_heads, head_dim;
    double scale;
    bool causal;
};
Numbers attention(const Floats& q, const Floats& k, const Floats& v, const AttentionShape& shape);
// The affine form of a GroupNorm: [2, C].
Numbers group_norm(const Floats& x, const Floats& gain, const Floats& bias, int groups, double eps);

struct ConvShape {
    int64_t height, width; // of the input
    int kernel;
    bool upsample;
};
// affine may be empty.
Numbers conv2d(const Floats& x, const Floats& weight, const Floats& bias, const Floats& affine,
               const ConvShape& shape);

} // namespace formula
} // namespace bonsai
