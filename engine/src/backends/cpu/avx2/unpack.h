// SPDX-License-Identifier: Apache-2.0
// Packed weights to the forms that the AVX2 kernels multiply. For the files of this folder only.
#pragma once

#include "backends/cpu/table.h"

namespace bonsai::cpu::avx2 {

// Columns of a panel of unpacked weights: two registers of 8 x 32 bits.
constexpr int kPanel = 16;

// Same results as bonsai::dequantize_row, bit for bit.
void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n);

// The same of weights [k, k + depth) of rows [row, row + kPanel) of w to columns of
// panel[depth][kPanel], depth <= 256; it has room for 16 times a whole number. The last row again
// where w has fewer.
void unpack_panel(const Tensor& w, int64_t row, int64_t k, int64_t depth, float* panel);

// The codes of 128 consecutive weights of a row, one byte each, and the scales that go with them:
//   low-bit     code 0..3, weight = scale[0] * (code - 1); binary weights are codes 0 and 2
//   Q4_0, Q4_1  code 0..15, weight = scale[b] * code + offset[b], b = 0..3 for each block of 32
//   Q8_0        code -128..127, weight = scale[b] * code; offset[b] = 0
struct GroupScales {
    float scale[4];
    float offset[4];
};
void unpack_group(DType dtype, const uint8_t* packed, uint8_t* codes, GroupScales* scales);

// Eight rows of 32-bit units, `stride` bytes apart, to columns: unit u of row r goes to byte
// u * 64 + r * 4 of out, so that two calls (out and out + 32) fill a panel. `units` is a
// multiple of 8.
void interleave(const void* rows, int64_t stride, int64_t units, void* out);

} // namespace bonsai::cpu::avx2
