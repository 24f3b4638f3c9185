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
    int64_t slab_words;
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

__device__ float block_scale(const Repack& p, const uint8_t* block) {
    const uint32_t bits = f16_bits(block + (p.dtype == DType::kPTQ1_0 ? 26 : 0));
    return f16_value(static_cast<uint16_t>(bits));
}

// Where a row's factor stands in the folded layout.
__device__ float& factor_of(const Repack& p, int64_t row) {
    uint32_t* slab = p.out + row / kSlabRows * p.slab_words;
    return reinterpret_cast<float*>(slab)[p.blocks * p.unit_words + row % kSlabRows];
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

// A warp a row: its factor.
__global__ void fold_factors_kernel(const Repack p) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    if (row >= (p.rows + kSlabRows - 1) / kSlabRows * kSlabRows) return;
    float largest = 0, sum = 0; // fmaxf drops a NaN, and a sum keeps it
    for (int64_t b = lane; row < p.rows && b < p.blocks; b += 32) {
        const float scale = fabsf(block_scale(p, p.raw + (row * p.blocks + b) * p.block_bytes));
        largest = fmaxf(largest, scale);
        sum += scale - scale; // NaN for an infinity too
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        sum += __shfl_xor_sync(~0u, sum, d);
    }
    if (lane == 0) factor_of(p, row) = sum == 0 ? largest / 127 : __int_as_float(0x7FC00000);
}

// The pair of bytes -r, r of a row's block.
__device__ uint32_t fold_ratio(const Repack& p, const uint8_t* block, int64_t row) {
    const float factor = block == nullptr ? 0.0f : factor_of(p, row);
    if (!(factor > 0)) return 0;
    const int r = __float2int_rn(block_scale(p, block) / factor);
    return (-r & 255) | (r & 255) << 8;
}

// A thread a word of a unit.
__global__ void fold_kernel(const Repack p, int64_t words) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= words) return;
    const int64_t unit = index / p.unit_words, slab = unit / p.blocks, block = unit % p.blocks;
    const int at = static_cast<int>(index % p.unit_words), codes = 32 * p.lane_words;
    const int lane = at < codes ? at & 31 : 4 * (at - codes);
    const int64_t row = slab * kSlabRows + (lane >> 2);
    const uint8_t* blocks[2];
    for (int h = 0; h < 2; ++h)
        blocks[h] = row + 8 * h < p.rows
                        ? p.raw + ((row + 8 * h) * p.blocks + block) * p.block_bytes
                        : nullptr;
    uint32_t word = 0;
    if (at >= codes) {
        word = fold_ratio(p, blocks[0], row) | fold_ratio(p, blocks[1], row + 8) << 16;
    } else {
        const int steps = 4 / p.lane_words;
        for (int o = 0; o < 4 * steps; ++o) { // operand words that share this one
            const int s = at / 32 * steps + (o >> 2), i = o & 3;
            if (blocks[i & 1] == nullptr) continue;
            for (int b = 0; b < 4; ++b) {
                const int k = 32 * s + 16 * (i >> 1) + 4 * (lane & 3) + b;
                const uint32_t stored = stored_code(p.dtype, blocks[i & 1], k);
                const uint32_t code = p.bits == 1 ? stored ^ 1u : (stored + 1u) & 3u;
                word |= code << (4 * b + 16 * (i & 1) + p.bits * (2 * (o >> 2) + (i >> 1)));
            }
        }
    }
    p.out[slab * p.slab_words + block * p.unit_words + at] = word;
}

unsigned blocks_for(int64_t threads, int block) {
    return static_cast<unsigned>((threads + block - 1) / block);
}

} // namespace

DeviceWeight device_weight(const Tensor& weight, bool folded) {
    DeviceWeight out;
    out.repack = is_block_quantized(weight.dtype);
    out.folded = folded && is_low_bit(weight.dtype);
    out.dtype = weight.dtype == DType::kPTQ1_0 ? DType::kPQ2_0 : weight.dtype;
    const int64_t unit = out.repack ? kSlabRows : 1;
    const int64_t rows = (weight.rows + unit - 1) / unit * unit;
    out.row_bytes = row_bytes(out.dtype, weight.cols) + (out.folded ? sizeof(float) : 0);
    out.bytes = static_cast<size_t>(rows) * out.row_bytes;
    return out;
}

Status repack_weight(cudaStream_t stream, const Tensor& raw, void* out, bool folded) {
    const DeviceWeight target = device_weight(raw, folded);
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
    p.slab_words = static_cast<int64_t>(target.row_bytes * kSlabRows / 4);
    constexpr int kThreads = 256;
    const int64_t slabs = (raw.rows + kSlabRows - 1) / kSlabRows;
    const int64_t words = slabs * p.blocks * p.unit_words;
    if (words == 0) return {};
    const unsigned blocks = blocks_for(words, kThreads);
    if (target.folded) {
        fold_factors_kernel<<<blocks_for(slabs * kSlabRows * 32, kThreads), kThreads, 0, stream>>>(
            p);
        BONSAI_TRY(check_launch("repack_weight: factors"));
        fold_kernel<<<blocks, kThreads, 0, stream>>>(p, words);
    } else {
        repack_kernel<<<blocks, kThreads, 0, stream>>>(p, words);
    }
    return check_launch("repack_weight");
}

} // namespace bonsai::cuda
