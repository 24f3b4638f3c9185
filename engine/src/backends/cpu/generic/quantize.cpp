// SPDX-License-Identifier: Apache-2.0
// quantize_rows: x[m, k] ~ scale[m, k / 128] * q[m, k], int8 codes for linear_fast
// Maths:    a = max |x| of the token's 128 columns; scale = a / 127; q = x * (127 / a) to the
//           nearest integer, ties to even.
//           A group below 2^-100 counts as zero (127 / a must stay finite). A group with a NaN or
//           an infinity gets codes 0 and scale NaN: what depends on it is NaN, as in float.
// Every level gives the same bytes: the three roundings above are the whole arithmetic.
#include <cmath>
#include <limits>

#include "backends/cpu/table.h"

namespace bonsai::cpu {
namespace {

// The codes of row m, group g; x is where the group begins.
void quantize_group(const float* x, const QuantizedRows& out, int64_t m, int64_t g) {
    int8_t* q = out.q + m * out.stride + g * kGroup;
    float largest = 0;
    bool finite = true;
    for (int j = 0; j < kGroup; ++j) {
        const float magnitude = std::fabs(x[j]);
        finite = finite && magnitude <= std::numeric_limits<float>::max();
        largest = magnitude > largest ? magnitude : largest;
    }
    const bool usable = finite && largest >= kLeastGroupMagnitude;
    const float inverse = usable ? 127.0f / largest : 0.0f;
    out.scale[g * out.rows + m] = !finite  ? std::numeric_limits<float>::quiet_NaN()
                                  : usable ? largest / 127.0f
                                           : 0.0f;
    int32_t sum = 0;
    for (int b = 0; b < kGroup / kBlock; ++b) {
        int32_t block_sum = 0;
        for (int j = b * kBlock; j < (b + 1) * kBlock; ++j) {
            q[j] = usable ? static_cast<int8_t>(std::nearbyint(x[j] * inverse)) : int8_t{0};
            block_sum += q[j];
        }
        if (out.block_sum != nullptr)
            out.block_sum[(g * (kGroup / kBlock) + b) * out.rows + m] = block_sum;
        sum += block_sum;
    }
    if (out.sum != nullptr) out.sum[g * out.rows + m] = sum;
}

void quantize_rows(const Tensor& x, const QuantizedRows& out, Range rows) {
    const int64_t groups = out.cols / kGroup;
    for (int64_t m = rows.begin; m < rows.end; ++m)
        for (int64_t g = 0; g < groups; ++g)
            quantize_group(x.row(m) + g * kGroup, out, m, g);
}

void sum_codes(const QuantizedRows& x, Range rows) {
    const int64_t blocks = x.cols / kBlock, of_group = kGroup / kBlock;
    for (int64_t m = rows.begin; m < rows.end; ++m) {
        const int8_t* q = x.q + m * x.stride;
        int32_t sum = 0;
        for (int64_t b = 0; b < blocks; ++b, q += kBlock) {
            int32_t block_sum = 0;
            for (int j = 0; j < kBlock; ++j)
                block_sum += q[j];
            x.block_sum[b * x.rows + m] = block_sum;
            sum = b % of_group == 0 ? block_sum : sum + block_sum;
            if ((b + 1) % of_group == 0) x.sum[b / of_group * x.rows + m] = sum;
        }
    }
}

size_t rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

} // namespace

// One cache line more than the columns: with a stride of 3072 or 12288 bytes the rows of a tile
// would share cache sets.
static int64_t padded_stride(int64_t cols) {
    return cols + 64;
}

size_t quantized_rows_bytes(int64_t rows, int64_t cols) {
    const size_t groups = static_cast<size_t>(rows) * static_cast<size_t>(cols / kGroup);
    return rounded(static_cast<size_t>(rows + kSpareRows) *
                   static_cast<size_t>(padded_stride(cols))) +
           2 * rounded(groups * 4) + rounded((groups * (kGroup / kBlock) + kSpareRows) * 4);
}

QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t cols) {
    const size_t groups = static_cast<size_t>(rows) * static_cast<size_t>(cols / kGroup);
    uint8_t* at = static_cast<uint8_t*>(memory);
    QuantizedRows out;
    out.rows = rows;
    out.cols = cols;
    out.stride = padded_stride(cols);
    out.q = reinterpret_cast<int8_t*>(at);
    at += rounded(static_cast<size_t>(rows + kSpareRows) * static_cast<size_t>(out.stride));
    out.scale = reinterpret_cast<float*>(at);
    at += rounded(groups * 4);
    out.sum = reinterpret_cast<int32_t*>(at);
    at += rounded(groups * 4);
    out.block_sum = reinterpret_cast<int32_t*>(at);
    return out;
}

void overlay_generic_quantize(KernelTable& table) {
    table.quantize_rows = quantize_rows;
    table.sum_codes = sum_codes;
    table.linear_needs_sums = true;
}

} // namespace bonsai::cpu
