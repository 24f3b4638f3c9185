// SPDX-License-Identifier: Apache-2.0
// Tensor: a matrix that somebody else owns. Every activation of the pipeline is a matrix: tokens x
// width in the text encoder and the transformer, pixels x channels (channels last) in the VAE.
// Weights are [out features, in features].
#pragma once

#include "core/dtype.h"

namespace bonsai {

struct Tensor {
    DType dtype = DType::kF32;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0; // elements from one row to the next; == cols unless this is a column slice
    void* data = nullptr; // an address of the backend that owns the memory
    // kI8 only: element (r, c) is its code times scales[c / scale_group * scale_stride + r]; the
    // last group of a row may be short. Kernels read scales four at a time, from a multiple of
    // 16 bytes on, and may read those of 256 rows beyond the last, and codes of kSpareRows.
    float* scales = nullptr;
    int64_t scale_stride = 0;
    int scale_group = kGroup; // or 256, or kWideGroup

    bool empty() const { return data == nullptr; }
    bool contiguous() const { return stride == cols; }

    float* f32() const { return static_cast<float*>(data); }
    float* row(int64_t r) const { return f32() + r * stride; }
    // Packed bytes of row r.
    const uint8_t* packed_row(int64_t r) const {
        return static_cast<const uint8_t*>(data) +
               static_cast<size_t>(r) * row_bytes(dtype, stride);
    }

    // Rows [begin, begin + n).
    Tensor slice_rows(int64_t begin, int64_t n) const {
        Tensor t = *this;
        t.rows = n;
        t.data =
            static_cast<uint8_t*>(data) + static_cast<size_t>(begin) * row_bytes(dtype, stride);
        if (scales) t.scales = scales + begin;
        return t;
    }
    // Columns [begin, begin + n) of a float matrix, or groups of kI8. A slice that begins inside a
    // group has no scales, and no op takes it.
    Tensor slice_cols(int64_t begin, int64_t n) const {
        Tensor t = *this;
        t.cols = n;
        t.data = static_cast<uint8_t*>(data) + row_bytes(dtype, begin);
        if (scales)
            t.scales =
                begin % scale_group == 0 ? scales + begin / scale_group * scale_stride : nullptr;
        return t;
    }
};

inline Tensor f32_matrix(float* data, int64_t rows, int64_t cols) {
    return Tensor{DType::kF32, rows, cols, cols, data};
}

// Rows of codes that a kernel may read beyond the last, whatever they hold.
constexpr int kSpareRows = 31;

// Groups of a row of an I8 matrix.
inline int64_t scale_groups(int64_t cols, int scale_group) {
    return (cols + scale_group - 1) / scale_group;
}
// The least distance of the scales of two groups of an I8 matrix.
inline int64_t scale_stride_of(int64_t rows) {
    return (rows + 15) / 16 * 16 + 256;
}

} // namespace bonsai
