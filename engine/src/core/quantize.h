// SPDX-License-Identifier: Apache-2.0
// The packed weight formats in plain code: packers for the converter and the tests, and the
// reference decoder that every fast kernel is compared with. Byte layouts: convert/FORMAT.md.
#pragma once

#include "core/dtype.h"
#include "core/status.h"

namespace bonsai {

// Packs rows x cols floats (row-major) into rows * row_bytes(dtype, cols) bytes. Fails when cols is
// not a multiple of the block or a value cannot be represented (not finite, or outside the range of
// F16 or of an F16 scale).
Status quantize_rows(DType dtype, const float* x, int64_t rows, int64_t cols, uint8_t* out);

// n elements of a packed or float row to f32; n is a multiple of the block.
void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n);

// A block of a quantised type as integers: weight j = scale * codes[j] + offset. Offset is 0 but
// for Q4_1.
struct BlockCodes {
    int8_t codes[kGroup]; // the first dtype_info(dtype).block are set
    float scale;
    float offset;
};
void unpack_block(DType dtype, const uint8_t* block, BlockCodes* out);

} // namespace bonsai
