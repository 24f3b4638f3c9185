// SPDX-License-Identifier: Apache-2.0
// What the parts of bonsai-bench-cuda-linear share.
#pragma once

#include <cmath>
#include <cstring>

#include "backends/cuda/linear.h"
#include "bench_cuda.h"
#include "core/half.h"

namespace cuda_bench {

struct Matrix {
    void* data = nullptr;
    explicit Matrix(size_t bytes) { require(cudaMalloc(&data, bytes), "cudaMalloc"); }
    ~Matrix() { cudaFree(data); }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;
};

// Codes are random bytes, without the fourth code of two-bit types; scales 1 / 64, of low-bit types
// 1 / 128 to 1 / 32.
inline std::vector<uint8_t> random_weight(Bench& bench, DType dtype, int64_t rows, int64_t cols) {
    const DTypeInfo& info = dtype_info(dtype);
    std::vector<uint8_t> bytes(row_bytes(dtype, cols) * static_cast<size_t>(rows));
    if (!is_block_quantized(dtype)) {
        for (size_t i = 0; i < bytes.size(); i += info.bytes) {
            const float value = static_cast<float>(static_cast<int8_t>(bench.bits() >> 20)) / 4096;
            const uint32_t f32 = f32_bits(value), f16 = f32_to_f16(value);
            const uint32_t stored = dtype == DType::kF32   ? f32
                                    : dtype == DType::kF16 ? f16
                                                           : f32 >> 16;
            for (size_t b = 0; b < info.bytes; ++b)
                bytes[i + b] = static_cast<uint8_t>(stored >> 8 * b);
        }
        return bytes;
    }
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const uint64_t v = bench.bits();
        for (size_t b = 0; b < 8; ++b)
            bytes[i + b] = static_cast<uint8_t>(v >> 8 * b);
    }
    if (dtype == DType::kPQ2_0)
        for (uint8_t& byte : bytes)
            byte &= static_cast<uint8_t>(~((byte & byte << 1) & 0xAA));
    for (size_t i = 0; i < bytes.size(); i += info.bytes) {
        const uint64_t v = is_low_bit(dtype) ? bench.bits() : 0;
        bytes[i] = static_cast<uint8_t>(v >> 20);
        bytes[i + 1] = static_cast<uint8_t>(is_low_bit(dtype) ? 0x20 + (v >> 40) % 8 : 0x24);
        if (dtype == DType::kQ4_1) bytes[i + 2] = 0, bytes[i + 3] = 0xA4;
    }
    return bytes;
}

// Low-bit weights in wgmma, all tiles, at the shapes of a step (bench_cuda_low_bit.cpp).
void run_low_bit(Bench& bench);

} // namespace cuda_bench
