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

Status make_tensor_map(CUtensorMapDataType type, const void* data, int64_t rows, int64_t cols,
                       int64_t row_bytes, int box_rows, CUtensorMap* map) {
    if (encoder() == nullptr)
        return fail(ErrorCode::kUnsupported,
                    "CUDA: the driver has no cuTensorMapEncodeTiled; a driver for CUDA 12 or later "
                    "is needed");
    const cuuint32_t box_cols = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 128 : 64;
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
    const cuuint32_t box[2] = {box_cols, static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t steps[2] = {1, 1};
    const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encoder())(
        map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return Status();
    return fail(ErrorCode::kInternal,
                "CUDA: cuTensorMapEncodeTiled answered %d for %lld x %lld, rows of %lld bytes",
                static_cast<int>(result), static_cast<long long>(rows),
                static_cast<long long>(cols), static_cast<long long>(row_bytes));
}

} // namespace bonsai::cuda
