// SPDX-License-Identifier: Apache-2.0
// How block-quantised weights lie in device memory: the file's codes and scales, ordered as the
// matrix instructions take them.
//
// Rows stand in slabs of 16, K in blocks of the type (32 or 128). A slab is a run of units, one a
// block, K ascending; a unit is the slab's 16 blocks: first the codes of lane 0, of lane 1, ..., of
// lane 31 (a lane's share is contiguous, so a warp loads it with one instruction), then the 16
// scales as pairs (row r, row r + 8), then for Q4_1 the 16 offsets as pairs. All are the sizes of
// the file: 16 blocks make a unit, and rows are padded to a multiple of 16. So a slice of rows that
// begins at a multiple of 16 is reached by the same address arithmetic as in the file.
//
// Lane 4 r + q holds rows r and r + 8 of the slab. For K step s of 32 inputs it owes the matrix
// instruction (m16n8k32, and wgmma m64 with A in registers) four words of four int8 codes, word i:
// row r + 8 (i & 1), columns 32 s + 16 (i >> 1) + 4 q + 0..3. In memory:
//   Q8_0          word i as it is
//   Q4_0, Q4_1    words 2 h and 2 h + 1 share word h: high nibbles, low nibbles of its bytes.
//                 Q4_0 holds code - 8 in two's complement, Q4_1 the code
//   PQ2_0         words 0..3 share the step's word: bits 7-6, 5-4, 3-2, 1-0 of its bytes, code - 1
//                 in two's complement. PTQ1_0 becomes this, 2.125 bits a weight: unpacking base 3
//                 would cost the main loop three times the instructions
//   Q1_0          the 8 words of two steps share one word: bits 7 down to 0; 1 is -d
// so that a shift and a mask leave signed bytes: 16 times the weight (Q4_0), 64 times (low-bit).
//
// Folded, for linear_hopper: low-bit types whose scales become ratios of the row's largest, r =
// round(127 s / s_max), |r| <= 127, and one f32 a row, its factor s_max / 127. A unit has the same
// bytes. Its codes are words 0 of all lanes, then words 1, ...: 4 b + 16 (i & 1) is the lowest bit
// of byte b of operand word i, plus 2 (i >> 1) for PQ2_0 (a word a step), plus 2 (s & 1) + (i >> 1)
// for Q1_0 (a word for two steps); the code is 0, 1, 2 for -r, 0, r, or 0, 1 for -r, r. In place of
// a scale stand the bytes -r, r: of row r, then of row r + 8. Behind a slab's units come the 16
// factors of its rows. So a shift and a mask leave selectors of a table of bytes (`prmt`). A row
// with a scale that is not finite has the factor NaN; one without scales but 0 has 0.
#pragma once

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "core/tensor.h"

namespace bonsai::cuda {

constexpr int kSlabRows = 16;

// What becomes of a weight of the file on the device.
struct DeviceWeight {
    DType dtype = DType::kF32;
    size_t bytes = 0;
    size_t row_bytes = 0; // bytes / rows; slices begin at multiples of kSlabRows
    bool repack = false;  // false: the file's bytes serve as they are
    bool folded = false;
};
// Looks at dtype, rows and cols. folded: low-bit types only; others ignore it.
DeviceWeight device_weight(const Tensor& weight, bool folded = false);

// raw: the file's bytes, contiguous, in device memory; out: device_weight(raw, folded).bytes.
// Queued.
Status repack_weight(cudaStream_t stream, const Tensor& raw, void* out, bool folded = false);

} // namespace bonsai::cuda
