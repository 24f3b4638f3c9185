// SPDX-License-Identifier: Apache-2.0
// The frame of linear_fast for the x86 levels: a tile of y is computed K-block by K-block; each
// block of weights is unpacked to panels once, for all rows of the tile, and multiplied by the
// micro-kernels of the level. Everything is static: each level compiles its own copy.
//
// A panel is 16 columns: for every 4 of K, 16 columns of 4 byte codes (for every 2 of K, 16 columns
// of 2 shorts), so that 64 bytes hold one step of all columns.
//
// A level is a struct with
//   kTileRows, kTileCols, kDepth    rows and columns of a tile, K-block (a multiple of 128)
//   kMicroRows, kMicroPanels        the most rows, and the panels, of one micro-kernel
//   Form form(DType)                what panels hold for weights of a type
//   const Multiply* kernels(DType)  micro-kernels for 1 .. form.micro_rows rows
#pragma once

#include <immintrin.h>

#include <cstring>

#include "backends/cpu/avx2/linear.h"
#include "backends/cpu/compiler.h"

namespace bonsai::cpu::avx2 {
namespace {

constexpr int kGroupBlocks = kGroup / kBlock;
constexpr int kUnit = 64; // bytes of one step of a panel

struct Form {
    int micro_rows;
    bool wide;   // shorts, not bytes
    uint8_t add; // to each byte code, mod 256: 0x80 makes -128..127 unsigned, 128 too high
};

// Operands of a micro-kernel, at its first row, group and column. Distances within arrays of Layout
// are constants of the level.
struct Micro {
    const int8_t* rows; // [micro rows, kDepth], or shorts of the same shape
    const float* x_scale;
    const int32_t* x_sum;
    const int32_t* x_block_sum;
    int64_t x_rows;
    const uint8_t* codes;
    const float* scale;
    const float* offset;
    float* sums;
    int groups;
};
using Multiply = void (*)(const Micro&);

// The tile's working memory.
template <class Level> struct Layout {
    static constexpr int kPanels = Level::kTileCols / kPanel;
    static constexpr int kScales = Level::kDepth / kBlock; // of a column; by group: a quarter used
    static constexpr int kCodeBytes = Level::kDepth / (Level::kWide ? 2 : 4) * kUnit;
    alignas(64) uint8_t codes[kPanels][kCodeBytes];
    alignas(64) float scale[kPanels][kScales][kPanel];
    alignas(64) float offset[kPanels][kScales][kPanel];
    alignas(64) float sums[kPanels][Level::kTileRows][kPanel];
    // x codes of the micro-kernel's rows. Side by side here, their distances are constants.
    alignas(64) int8_t rows[Level::kMicroRows * Level::kDepth * (Level::kWide ? 2 : 1)];
};

// One group of up to 8 weight rows to half a panel; missing rows become zeros.
template <class Level>
void unpack_half_panel(const Tensor& w, Range cols, int64_t k, int g, int64_t at, const Form& form,
                       Layout<Level>* layout) {
    const DTypeInfo& info = dtype_info(w.dtype);
    const auto* data = static_cast<const uint8_t*>(w.data);
    const int64_t panel = at / kPanel, column = at % kPanel;
    const int parts = info.block == kGroup ? 1 : kGroupBlocks;
    alignas(32) uint8_t rows[8][kGroup];
    for (int i = 0; i < 8; ++i) {
        GroupScales scales = {};
        if (cols.begin + i < cols.end) {
            const int64_t block = ((cols.begin + i) * w.stride + k) / info.block;
            unpack_group(w.dtype, data + block * info.bytes, rows[i], &scales);
        } else {
            std::memset(rows[i], 0, sizeof rows[i]);
        }
        for (int b = 0; b < parts; ++b) {
            layout->scale[panel][g * parts + b][column + i] = scales.scale[b];
            layout->offset[panel][g * parts + b][column + i] = scales.offset[b];
        }
    }
    uint8_t* codes = layout->codes[panel] + column * 4;
    if (!form.wide) {
        if (form.add != 0) {
            const __m256i add = _mm256_set1_epi8(static_cast<char>(form.add));
            auto* all = reinterpret_cast<__m256i*>(rows[0]);
            for (int i = 0; i < 8 * kGroup / 32; ++i)
                _mm256_store_si256(all + i, _mm256_add_epi8(_mm256_load_si256(all + i), add));
        }
        return interleave(rows, kGroup, kGroup / 4, codes + g * (kGroup / 4) * kUnit);
    }
    alignas(32) int16_t wide[8][kGroup];
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < kGroup; j += 16)
            _mm256_store_si256(reinterpret_cast<__m256i*>(wide[i] + j),
                               _mm256_cvtepi8_epi16(
                                   _mm_load_si128(reinterpret_cast<const __m128i*>(rows[i] + j))));
    interleave(wide, sizeof wide[0], kGroup / 2, codes + g * (kGroup / 2) * kUnit);
}

template <class Level>
void unpack(const Tensor& w, Range cols, int64_t k, int groups, int64_t panels, const Form& form,
            Layout<Level>* layout) {
    for (int64_t at = 0; at < panels * kPanel; at += 8)
        for (int g = 0; g < groups; ++g)
            unpack_half_panel(w, {cols.begin + at, cols.end}, k + g * kGroup, g, at, form, layout);
}

template <class Level>
void copy_rows(const int8_t* q, int64_t stride, int64_t rows, int depth, bool wide, int8_t* out) {
    for (int64_t r = 0; r < rows; ++r, q += stride) {
        auto* to = reinterpret_cast<__m256i*>(out + r * Level::kDepth * (wide ? 2 : 1));
        for (int j = 0; j < depth; j += 32) {
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + j));
            if (!wide) {
                _mm256_store_si256(to++, codes);
                continue;
            }
            _mm256_store_si256(to++, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)));
            _mm256_store_si256(to++, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1)));
        }
    }
}

// The next rows: too short a run of each row for the hardware to foresee.
inline void prefetch(const QuantizedRows& x, Range rows, int64_t k, int64_t depth) {
    for (int64_t m = rows.begin; m < rows.end; ++m)
        for (int64_t j = k; j < k + depth; j += 64)
            _mm_prefetch(reinterpret_cast<const char*>(x.q + m * x.stride + j), _MM_HINT_T0);
}

template <class Level>
void multiply_panels(const QuantizedRows& x, Range rows, int64_t k, int groups, int64_t panels,
                     const Form& form, const Multiply* kernels, Layout<Level>* layout) {
    for (int64_t m = rows.begin; m < rows.end; m += form.micro_rows) {
        const int64_t next = at_most(m + form.micro_rows, rows.end);
        copy_rows<Level>(x.q + m * x.stride + k, x.stride, next - m, groups * kGroup, form.wide,
                         layout->rows);
        prefetch(x, {next, at_most(next + form.micro_rows, rows.end)}, k, groups * kGroup);
        Micro u = {};
        u.rows = layout->rows;
        u.x_rows = x.rows;
        u.x_scale = x.scale + k / kGroup * x.rows + m;
        u.x_sum = x.sum + k / kGroup * x.rows + m;
        u.x_block_sum = x.block_sum + k / kBlock * x.rows + m;
        u.groups = groups;
        for (int64_t i = 0; i < panels; i += Level::kMicroPanels) {
            u.codes = layout->codes[i];
            u.scale = layout->scale[i][0];
            u.offset = layout->offset[i][0];
            u.sums = layout->sums[i][m - rows.begin];
            kernels[next - m - 1](u);
        }
    }
}

template <class Level>
void fast_tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
               Layout<Level>* layout) {
    constexpr int64_t kStep = Level::kMicroPanels * kPanel;
    const Form form = Level::form(p.weight.dtype);
    const Multiply* kernels = Level::kernels(p.weight.dtype);
    const int64_t panels = (cols.end - cols.begin + kStep - 1) / kStep * Level::kMicroPanels;
    for (int64_t i = 0; i < panels; ++i)
        std::memset(layout->sums[i], 0,
                    sizeof layout->sums[i][0] * static_cast<size_t>(rows.end - rows.begin));
    for (int64_t k = 0; k < x.cols; k += Level::kDepth) {
        const auto groups = static_cast<int>(at_most(x.cols - k, Level::kDepth) / kGroup);
        unpack(p.weight, cols, k, groups, panels, form, layout);
        multiply_panels(x, rows, k, groups, panels, form, kernels, layout);
    }
    finish_tile(layout->sums[0][0], Level::kTileRows, p, rows, cols);
}

template <class Level>
bool fast_piece(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                Scratch& scratch) {
    auto* layout = static_cast<Layout<Level>*>(scratch.get(sizeof(Layout<Level>)));
    if (layout == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; n += Level::kTileCols)
        for (int64_t m = rows.begin; m < rows.end; m += Level::kTileRows)
            fast_tile(x, p, {m, at_most(m + Level::kTileRows, rows.end)},
                      {n, at_most(n + Level::kTileCols, cols.end)}, layout);
    return true;
}

} // namespace
} // namespace bonsai::cpu::avx2
