// SPDX-License-Identifier: Apache-2.0
// Tensor maps: how the copy engine of Hopper sees a matrix.
#pragma once

#include <cuda.h>

#include "backends/cuda/context.h"

namespace bonsai::cuda {

// Boxes of box_rows rows and 128 bytes, swizzled as hopper.cuh says, of a matrix of 16-bit numbers
// or of bytes. `row_bytes` from one row to the next, a multiple of 16; data aligned to 16. What
// lies outside the matrix reads as zero.
Status make_tensor_map(CUtensorMapDataType type, const void* data, int64_t rows, int64_t cols,
                       int64_t row_bytes, int box_rows, CUtensorMap* map);

// Boxes of one unit of `box_slabs` slabs of a weight (weight_layout.h), which has `slabs` slabs of
// `units` units; slab_bytes from one slab to the next.
Status make_weight_map(const void* data, int64_t unit_bytes, int64_t units, int64_t slab_bytes,
                       int64_t slabs, int box_slabs, CUtensorMap* map);

} // namespace bonsai::cuda
