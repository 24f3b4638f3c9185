// SPDX-License-Identifier: Apache-2.0
// linear_fast: y[M,N] = x[M,K] * W[N,K]^T, x in int8 with a scale a token and group of 128. The
// walk over tiles; each ARM level brings the micro-kernel and the layout of its operands.
// Layout:   x codes row-major. W packed; 96 rows x 256 of K at a time are unpacked to signed bytes
//           in scratch, in panels of Kernel::kCols columns; Kernel::kRows rows of x at a time are
//           laid out beside them.
// Maths:    exact integer dot products over a group of 128 (low-bit) or a block of 32, then
//           y += x_scale * (sum over blocks of w_scale * dot + w_offset * x_sum) in f32.
// Work:     a tile unpacks each weight once for up to 512 rows; each 256 codes of x are laid out
//           once for 96 columns.
// A file includes this once, with a Kernel that has
//   kRows, kCols     a block of y that fits in registers; kTileCols % kCols == 0
//   lay_columns      codes of a group of 128 of kCols weight rows, [kCols][kGroup], to a panel
//   lay_rows         `count` rows of x codes to its own layout, zeros up to kRows
//   low_bit, blocks  the products of a Micro, for its number of rows; not to be inlined, as within
//                    the walk over tiles gcc 12 keeps some of the accumulators in memory
//   order            the sums of a block from the order of registers to [kRows][kCols]
#pragma once

#if defined(__aarch64__)

#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

constexpr int kDepthGroups = kDepth / kGroup;
constexpr int kGroupBlocks = kGroup / kBlock;
constexpr int kMostRows = 8; // of any Kernel

// Operands of a micro-kernel.
struct Micro {
    const int8_t* x;          // kDepth codes of each row, in the Kernel's layout
    const int8_t* codes;      // a panel
    const float* x_scale;     // [groups][kMostRows]
    const float* x_block_sum; // [groups * 4][kMostRows]
    const float* scale;       // [groups or blocks][kCols]
    const float* offset;      // likewise; only for blocks
    float* sums;              // [kRows * kCols], in the order of the Kernel's registers
    int groups;
    int rows;
};

template <typename Kernel> struct Layout {
    static constexpr int kPanels = kTileCols / Kernel::kCols;
    static constexpr int kRowBlocks = (kTileRows + Kernel::kRows - 1) / Kernel::kRows;
    alignas(64) int8_t codes[kPanels][kDepth * Kernel::kCols];
    alignas(64) float scale[kPanels][kDepth / kBlock][Kernel::kCols];
    alignas(64) float offset[kPanels][kDepth / kBlock][Kernel::kCols];
    alignas(64) float sums[kRowBlocks][kPanels][Kernel::kRows * Kernel::kCols];
    alignas(64) int8_t x[Kernel::kRows * kDepth];
    alignas(64) float x_scale[kDepthGroups][kMostRows];
    alignas(64) float x_block_sum[kDepth / kBlock][kMostRows];
};

// One group of kCols weight rows from `row` on; missing rows become zeros.
template <typename Kernel>
void unpack_columns(const Tensor& w, int64_t row, int64_t k, int g, int64_t panel,
                    Layout<Kernel>* layout) {
    const DTypeInfo& info = dtype_info(w.dtype);
    const auto* data = static_cast<const uint8_t*>(w.data);
    const int parts = info.block == kGroup ? 1 : kGroupBlocks;
    alignas(16) int8_t codes[Kernel::kCols][kGroup];
    for (int c = 0; c < Kernel::kCols; ++c) {
        GroupScales scales = {};
        if (row + c < w.rows) {
            const int64_t block = ((row + c) * w.stride + k) / info.block;
            unpack_group(w.dtype, data + block * info.bytes, codes[c], &scales);
        } else {
            memset(codes[c], 0, sizeof codes[c]);
        }
        for (int b = 0; b < parts; ++b) {
            layout->scale[panel][g * parts + b][c] = scales.scale[b];
            layout->offset[panel][g * parts + b][c] = scales.offset[b];
        }
    }
    Kernel::lay_columns(codes, g, layout->codes[panel]);
}

// `count` rows of x from row m, columns k to k + groups * kGroup, with their scales and sums. What
// belongs to no row is zero.
template <typename Kernel>
void take_rows(const QuantizedRows& x, int64_t m, int count, int64_t k, int groups,
               Layout<Kernel>* layout) {
    Kernel::lay_rows(x.q + m * x.stride + k, x.stride, count, groups * kGroup, layout->x);
    const float* scale = x.scale + k / kGroup * x.rows + m;
    const int32_t* sum = x.block_sum + k / kBlock * x.rows + m;
    for (int g = 0; g < groups; ++g)
        for (int r = 0; r < kMostRows; ++r)
            layout->x_scale[g][r] = r < count ? scale[g * x.rows + r] : 0.0f;
    for (int b = 0; b < groups * kGroupBlocks; ++b)
        for (int r = 0; r < kMostRows; ++r)
            layout->x_block_sum[b][r] = r < count ? static_cast<float>(sum[b * x.rows + r]) : 0.0f;
}

template <typename Kernel>
void multiply_rows(const QuantizedRows& x, DType dtype, Range rows, int64_t panels, int64_t k,
                   int groups, Layout<Kernel>* layout) {
    for (int64_t m = rows.begin; m < rows.end; m += Kernel::kRows) {
        const int count =
            static_cast<int>(rows.end - m < Kernel::kRows ? rows.end - m : Kernel::kRows);
        take_rows(x, m, count, k, groups, layout);
        for (int64_t i = 0; i < panels; ++i) {
            const Micro u = {layout->x,
                             layout->codes[i],
                             layout->x_scale[0],
                             layout->x_block_sum[0],
                             layout->scale[i][0],
                             layout->offset[i][0],
                             layout->sums[(m - rows.begin) / Kernel::kRows][i],
                             groups,
                             count};
            if (dtype_info(dtype).block == kGroup)
                Kernel::low_bit(u);
            else
                Kernel::blocks(u, dtype);
        }
    }
}

// The sums of a row of the tile side by side, with the epilogue to the output.
template <typename Kernel>
void finish_rows(const Projection& p, Range rows, Range cols, int64_t panels,
                 Layout<Kernel>* layout) {
    for (int64_t m = rows.begin; m < rows.end; ++m) {
        const int64_t block = (m - rows.begin) / Kernel::kRows;
        const int64_t r = (m - rows.begin) % Kernel::kRows;
        float row[kTileCols];
        for (int64_t i = 0; i < panels; ++i) {
            if (r == 0) Kernel::order(layout->sums[block][i]);
            memcpy(row + i * Kernel::kCols, layout->sums[block][i] + r * Kernel::kCols,
                   Kernel::kCols * sizeof(float));
        }
        finish_row(row, p, m, cols.begin, cols.end);
    }
}

template <typename Kernel>
void multiply_tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                   Layout<Kernel>* layout) {
    const int64_t panels = (cols.end - cols.begin + Kernel::kCols - 1) / Kernel::kCols;
    const int64_t blocks = (rows.end - rows.begin + Kernel::kRows - 1) / Kernel::kRows;
    memset(layout->sums, 0, static_cast<size_t>(blocks) * sizeof layout->sums[0]);
    for (int64_t k = 0; k < x.cols; k += kDepth) {
        const int64_t left = (x.cols - k) / kGroup;
        const int groups = left < kDepthGroups ? static_cast<int>(left) : kDepthGroups;
        for (int64_t i = 0; i < panels; ++i)
            for (int g = 0; g < groups; ++g)
                unpack_columns(p.weight, cols.begin + i * Kernel::kCols, k + g * kGroup, g, i,
                               layout);
        multiply_rows(x, p.weight.dtype, rows, panels, k, groups, layout);
    }
    finish_rows(p, rows, cols, panels, layout);
}

template <typename Kernel>
bool linear_by_tiles(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                     Scratch& scratch) {
    auto* layout = static_cast<Layout<Kernel>*>(scratch.get(sizeof(Layout<Kernel>)));
    if (layout == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; n += kTileCols)
        for (int64_t m = rows.begin; m < rows.end; m += kTileRows)
            multiply_tile(x, p, {m, m + kTileRows < rows.end ? m + kTileRows : rows.end},
                          {n, n + kTileCols < cols.end ? n + kTileCols : cols.end}, layout);
    return true;
}

} // namespace
} // namespace bonsai::cpu::neon

#endif // __aarch64__
