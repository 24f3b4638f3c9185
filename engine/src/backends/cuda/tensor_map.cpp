// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/tensor_map.h"

namespace bonsai::cuda {

// cuTensorMapEncodeTiled of the driver, found without linking it.
static void* encoder() {
    static void* const address = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                             cudaEnableDefault, &result) != cudaSuccess ||
            result != cudaDriverEntryPointSuccess)
            found = nullptr;
        return found;
    }();
    return address;
}

using Encode = decltype(&cuTensorMapEncodeTiled);

static Status find_encoder(Encode* out) {
    *out = reinterpret_cast<Encode>(encoder());
    if (*out != nullptr) return Status();
    return fail(ErrorCode::kUnsupported,
                "CUDA: the driver has no cuTensorMapEncodeTiled; a driver for CUDA 12 or later is "
                "needed");
}

Status make_tensor_map(CUtensorMapDataType type, const void* data, int64_t rows, int64_t cols,
                       int64_t row_bytes, int box_rows, CUtensorMap* map) {
    Encode encode = nullptr;
    BONSAI_TRY(find_encoder(&encode));
    const cuuint32_t box_cols = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 128 : 64;
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
    const cuuint32_t box[2] = {box_cols, static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t steps[2] = {1, 1};
    const CUresult result =
        encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return Status();
    return fail(ErrorCode::kInternal,
                "CUDA: cuTensorMapEncodeTiled answered %d for %lld x %lld, rows of %lld bytes",
                static_cast<int>(result), static_cast<long long>(rows),
                static_cast<long long>(cols), static_cast<long long>(row_bytes));
}

Status make_weight_map(const void* data, int64_t unit_bytes, int64_t units, int64_t slab_bytes,
                       int64_t slabs, int box_slabs, CUtensorMap* map) {
    Encode encode = nullptr;
    BONSAI_TRY(find_encoder(&encode));
    const auto words = static_cast<cuuint32_t>(unit_bytes / 4);
    const cuuint64_t sizes[3] = {words, static_cast<cuuint64_t>(units),
                                 static_cast<cuuint64_t>(slabs)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(unit_bytes),
                                   static_cast<cuuint64_t>(slab_bytes)};
    const cuuint32_t box[3] = {words, 1, static_cast<cuuint32_t>(box_slabs)};
    const cuuint32_t steps[3] = {1, 1, 1};
    const CUresult result =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT32, 3, const_cast<void*>(data), sizes, strides, box,
               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return Status();
    return fail(ErrorCode::kInternal,
                "CUDA: cuTensorMapEncodeTiled answered %d for %lld slabs of %lld units",
                static_cast<int>(result), static_cast<long long>(slabs),
                static_cast<long long>(units));
}

} // namespace bonsai::cuda
