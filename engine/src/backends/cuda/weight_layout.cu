// SPDX-License-Identifier: Apache-2.0
// repack_weight: blocks of the file to slabs (weight_layout.h)
// Work:     a thread writes one word of codes, scales or offsets; reads are scattered, which a load
//           that comes from a file hides.
#include "backends/cuda/context.h"
#include "backends/cuda/weight_layout.cuh"

namespace bonsai::cuda {
namespace {

__device__ uint32_t byte_at(const uint8_t* p) {
    return *p;
}

// Trit of column k of a PTQ1_0 block: which byte and which digit, see convert/FORMAT.md.
__device__ uint32_t ptq1_code(const uint8_t* block, int k) {
    int b, n;
    if (k < 80) {
        b = k & 15, n = k >> 4;
    } else if (k < 120) {
        b = 16 + ((k - 80) & 7), n = (k - 80) >> 3;
    } else {
        b = 24 + ((k - 120) & 1), n = (k - 120) >> 1;
    }
    uint32_t fraction = block[b];
    for (int i = 0; i < n; ++i)
        fraction = fraction * 3 & 255;
    return fraction * 3 >> 8;
}

// Column k of a block as the bits that the layout stores.
__device__ uint32_t stored_code(DType dtype, const uint8_t* block, int k) {
    switch (dtype) {
    case DType::kQ8_0:
        return byte_at(block + 2 + k);
    case DType::kQ4_0:
        return ((block[2 + (k & 15)] >> (k & 16 ? 4 : 0)) & 15u) ^ 8u;
    case DType::kQ4_1:
        return (block[4 + (k & 15)] >> (k & 16 ? 4 : 0)) & 15u;
    case DType::kPQ2_0:
        return ((block[2 + (k >> 2)] >> 2 * (k & 3)) + 3u) & 3u;
    case DType::kPTQ1_0:
        return (ptq1_code(block, k) + 3u) & 3u;
    case DType::kQ1_0:
        return ~(block[2 + (k >> 3)] >> (k & 7)) & 1u;
    default:
        return 0;
    }
}

struct Repack {
    const uint8_t* raw;
    uint32_t* out;
    int64_t rows, blocks; // blocks of a row
    DType dtype;          // of the file
    int block_bytes;
    int lane_words, unit_words, bits; // bits of a stored code
};

// Word `at` of a lane's share: see weight_layout.h for the order.
__device__ uint32_t code_word(const Repack& p, const uint8_t* const blocks[2], int lane, int at) {
    const int operands = 8 / p.bits; // operand words that share this one
    uint32_t word = 0;
    for (int o = 0; o < operands; ++o) {
        const int index = at * operands + o; // operand word of the unit
        const int s = index >> 2, i = index & 3;
        const uint8_t* block = blocks[i & 1];
        if (block == nullptr) continue;
        for (int b = 0; b < 4; ++b) {
            const int k = 32 * s + 16 * (i >> 1) + 4 * (lane & 3) + b;
            word |= stored_code(p.dtype, block, k) << (8 * b + 8 - p.bits * (o + 1));
        }
    }
    return word;
}

__device__ uint32_t f16_bits(const uint8_t* p) {
    return p[0] | static_cast<uint32_t>(p[1]) << 8;
}

__global__ void repack_kernel(const Repack p, int64_t words) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= words) return;
    const int64_t unit = index / p.unit_words, slab = unit / p.blocks, block = unit % p.blocks;
    const int at = static_cast<int>(index % p.unit_words), codes = 32 * p.lane_words;
    const int lane = at < codes ? at / p.lane_words : 4 * ((at - codes) & 7);
    const uint8_t* blocks[2];
    for (int h = 0; h < 2; ++h) {
        const int64_t row = slab * kSlabRows + (lane >> 2) + 8 * h;
        blocks[h] = row < p.rows ? p.raw + (row * p.blocks + block) * p.block_bytes : nullptr;
    }
    if (at < codes) {
        p.out[index] = code_word(p, blocks, lane, at % p.lane_words);
        return;
    }
    // Scales come first, then the offsets of Q4_1.
    const int from = at - codes >= 8 ? 2 : p.dtype == DType::kPTQ1_0 ? 26 : 0;
    const uint32_t low = blocks[0] ? f16_bits(blocks[0] + from) : 0u;
    const uint32_t high = blocks[1] ? f16_bits(blocks[1] + from) : 0u;
    p.out[index] = low | high << 16;
}

int stored_bits(DType dtype) {
    switch (dtype) {
    case DType::kQ8_0:
        return 8;
    case DType::kQ4_0:
    case DType::kQ4_1:
        return 4;
    case DType::kQ1_0:
        return 1;
    default:
        return 2;
    }
}

} // namespace

DeviceWeight device_weight(const Tensor& weight) {
    DeviceWeight out;
    out.repack = is_block_quantized(weight.dtype);
    out.dtype = weight.dtype == DType::kPTQ1_0 ? DType::kPQ2_0 : weight.dtype;
    const int64_t unit = out.repack ? kSlabRows : 1;
    const int64_t rows = (weight.rows + unit - 1) / unit * unit;
    out.bytes = static_cast<size_t>(rows) * row_bytes(out.dtype, weight.cols);
    return out;
}

Status repack_weight(cudaStream_t stream, const Tensor& raw, void* out) {
    const DeviceWeight target = device_weight(raw);
    const DTypeInfo &from = dtype_info(raw.dtype), &to = dtype_info(target.dtype);
    Repack p;
    p.raw = static_cast<const uint8_t*>(raw.data);
    p.out = static_cast<uint32_t*>(out);
    p.rows = raw.rows;
    p.blocks = raw.cols / from.block;
    p.dtype = raw.dtype;
    p.block_bytes = static_cast<int>(from.bytes);
    p.bits = stored_bits(raw.dtype);
    p.lane_words = static_cast<int>(to.block) * p.bits * kSlabRows / 1024;
    p.unit_words = static_cast<int>(to.bytes) * kSlabRows / 4;
    const auto words = static_cast<int64_t>(target.bytes / 4);
    constexpr int kThreads = 256;
    const auto blocks = static_cast<unsigned>((words + kThreads - 1) / kThreads);
    if (blocks == 0) return {};
    repack_kernel<<<blocks, kThreads, 0, stream>>>(p, words);
    return check_launch("repack_weight");
}

} // namespace bonsai::cuda
