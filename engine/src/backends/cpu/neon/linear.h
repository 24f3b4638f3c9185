// SPDX-License-Identifier: Apache-2.0
// What the ARM products share: packed weights to codes and to panels of floats, tile sizes, and the
// epilogue of a tile. For this folder and the levels that stand on it.
#pragma once

#include "backends/cpu/table.h"

namespace bonsai::cpu::neon {

// Sums of up to kTileRows x kTileCols lie in scratch, while one block of kDepth of K is unpacked at
// a time. 96 columns divide by the width of every micro-kernel (8 and 12); their codes take 24 KB,
// so that they stay in a first-level cache of 32 KB beside the rows that pass.
constexpr int kTileCols = 96;
constexpr int kTileRows = 512;
constexpr int kDepth = 256;

// Same results as bonsai::dequantize_row, bit for bit.
void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n);

// The codes of 128 consecutive weights of a row and the scales that go with them:
//   low-bit  weight = scale[0] * code, codes -1, 0, 1 (2 for a ternary code that no packer writes)
//   others   weight = scale[b] * code + offset[b], b = 0..3 for each block of 32; offset is 0 but
//            for Q4_1. Codes: Q4_0 -8..7, Q4_1 0..15, Q8_0 -128..127
struct GroupScales {
    float scale[4];
    float offset[4];
};
void unpack_group(DType dtype, const uint8_t* packed, int8_t* codes, GroupScales* scales);

// Weights [k, k + n) of rows [row, row + 8) as floats to panel[n][8], n <= kDepth; it has room for
// 8 times a whole number. The last row again where the matrix has fewer.
void unpack_panel(const Tensor& w, int64_t row, int64_t k, int64_t n, float* panel);

// out = sums + bias, or out += gate * (sums + bias), for one row and columns [begin, end).
void finish_row(const float* sums, const Projection& p, int64_t row, int64_t begin, int64_t end);

void quantize_rows(const Tensor& x, const QuantizedRows& out, Range rows);
bool linear_exact(const Tensor& x, const Projection& p, Range rows, Range cols, Scratch& scratch);
bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch);

} // namespace bonsai::cpu::neon
