// SPDX-License-Identifier: Apache-2.0
// DType: how the elements of a tensor are stored. Block types store `block` consecutive elements of
// a row in `bytes` bytes; layouts are written down in convert/FORMAT.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bonsai {

enum class DType : uint8_t {
    kF32,
    kF16,
    kBF16,
    kQ8_0,
    kQ4_0,
    kQ4_1,
    kQ1_0,   // binary, groups of 128
    kPQ2_0,  // ternary, 2 bits a code, groups of 128
    kPTQ1_0, // ternary, 5 codes a byte, groups of 128
    kI8,     // activations only: codes whose scales, one for each group, lie elsewhere
};
constexpr int kDTypeCount = 9; // those that files hold

// One scale is shared by this many consecutive weights of a row in the low-bit types.
constexpr int kGroup = 128;
// Activations of I8 share one among kGroup or, where only low-bit weights meet them, up to this
// many.
constexpr int kWideGroup = 512;

struct DTypeInfo {
    const char* name;
    uint32_t gguf_id;
    uint32_t block; // elements
    uint32_t bytes; // bytes of one block
};

const DTypeInfo& dtype_info(DType dtype);

// False when the GGUF type id is not one of ours.
bool dtype_from_gguf(uint32_t gguf_id, DType* out);

// Bytes of one row of `cols` elements; cols must be a multiple of the block.
inline size_t row_bytes(DType dtype, int64_t cols) {
    const DTypeInfo& info = dtype_info(dtype);
    return static_cast<size_t>(cols) / info.block * info.bytes;
}

inline bool is_low_bit(DType dtype) {
    return dtype == DType::kQ1_0 || dtype == DType::kPQ2_0 || dtype == DType::kPTQ1_0;
}
inline bool is_block_quantized(DType dtype) {
    return dtype_info(dtype).block > 1;
}
// Weights whose products with I8 activations need nothing but codes and scales: an offset also
// needs the sums of the codes.
inline bool meets_codes(DType dtype) {
    return is_block_quantized(dtype) && dtype != DType::kQ4_1;
}

} // namespace bonsai
