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
    bool repack = false; // false: the file's bytes serve as they are
};
DeviceWeight device_weight(const Tensor& weight); // looks at dtype, rows and cols

// raw: the file's bytes, contiguous, in device memory; out: device_weight(raw).bytes. Queued.
Status repack_weight(cudaStream_t stream, const Tensor& raw, void* out);

} // namespace bonsai::cuda
