// SPDX-License-Identifier: Apache-2.0
// linear: y[M,N] = x[M,K] * W[N,K]^T + bias[N], the reference
// Layout:   x, out f32 rows with a stride; W packed, see core/quantize.h.
// Maths:    exact: weights expanded to f32, products summed in double.
//           fast: x as int8 (quantize.cpp); integer dot products d over each weight block, or over
//           each group of 128 of the low-bit types; y = sum of x_scale * (w_scale * d + w_offset *
//           sum of x codes), in f32, K ascending.
// Epilogue: y + bias, then stored or out += gate * y.
// Work:     one weight row is unpacked into scratch and used for all rows of the piece.
#include "backends/cpu/table.h"
#include "core/quantize.h"

namespace bonsai::cpu {
namespace {

void finish(const Projection& p, int64_t m, int64_t n, float y) {
    if (!p.bias.empty()) y += p.bias.f32()[n];
    float* out = p.out.row(m) + n;
    if (!p.accumulate)
        *out = y;
    else
        *out += p.gate.empty() ? y : p.gate.f32()[n] * y;
}

bool linear_exact(const Tensor& x, const Projection& p, Range rows, Range cols, Scratch& scratch) {
    const int64_t k_count = x.cols;
    float* w = static_cast<float*>(scratch.get(static_cast<size_t>(k_count) * sizeof(float)));
    if (w == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; ++n) {
        dequantize_row(p.weight.dtype, p.weight.packed_row(n), w, k_count);
        for (int64_t m = rows.begin; m < rows.end; ++m) {
            const float* a = x.row(m);
            double sum = 0;
            for (int64_t k = 0; k < k_count; ++k)
                sum += static_cast<double>(a[k]) * w[k];
            finish(p, m, n, static_cast<float>(sum));
        }
    }
    return true;
}

// One output: blocks hold the whole weight row.
float dot_quantized(const QuantizedRows& x, int64_t m, const BlockCodes* blocks, int block) {
    const int8_t* q = x.q + m * x.stride;
    float y = 0;
    for (int64_t k = 0; k < x.cols; k += block, ++blocks) {
        int32_t dot = 0;
        for (int j = 0; j < block; ++j)
            dot += q[k + j] * blocks->codes[j];
        float part = blocks->scale * static_cast<float>(dot);
        if (block == kBlock)
            part += blocks->offset * static_cast<float>(x.block_sum[k / kBlock * x.rows + m]);
        y += x.scale[k / kGroup * x.rows + m] * part;
    }
    return y;
}

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    const DTypeInfo& info = dtype_info(p.weight.dtype);
    const int block = static_cast<int>(info.block);
    const int64_t count = x.cols / block;
    auto* blocks =
        static_cast<BlockCodes*>(scratch.get(static_cast<size_t>(count) * sizeof(BlockCodes)));
    if (blocks == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; ++n) {
        const uint8_t* packed = p.weight.packed_row(n);
        for (int64_t b = 0; b < count; ++b)
            unpack_block(p.weight.dtype, packed + b * info.bytes, blocks + b);
        for (int64_t m = rows.begin; m < rows.end; ++m)
            finish(p, m, n, dot_quantized(x, m, blocks, block));
    }
    return true;
}

} // namespace

void overlay_generic_linear(KernelTable& table) {
    table.dequantize_row = dequantize_row;
    table.linear_exact = linear_exact;
    table.linear_fast = linear_fast;
    table.linear_piece = [](DType) -> PieceSize { return {64, 16}; };
    overlay_generic_quantize(table);
}

} // namespace bonsai::cpu
