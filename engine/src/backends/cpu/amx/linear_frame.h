// SPDX-License-Identifier: Apache-2.0
// The frame of linear_fast on AMX tiles. A tile of y is computed depth by depth and strip by strip:
// the weights of a strip of columns, to the depth, are unpacked once for all rows of the tile,
// whose x stays in the second-level cache for all strips; blocks of rows keep their sums in the
// first. Everything is static: AMX code must not reach other objects through the linker.
//
// A panel is 16 columns of y. A kind of weights is a struct with
//   kTileRows, kTileCols            of a tile of y
//   kStripCols, kDepth              columns and K of one unpacking
//   kBlockRows, kMicroRows          rows of a block; of a step, which has two panels' columns
//   Weights, Products               unpacked weights; what tiles hold of a step, on its way to sums
//   shapes()                        of the tiles
//   unpack(w, cols, k, groups, panel, &weights)    one panel
//   Pipeline(x, k, weights, products), load(group, row), push(panel, sums), drain()
#pragma once

#include <cstring>

#include "backends/cpu/amx/linear_finish.h"
#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/table.h"

namespace bonsai::cpu::amx {
namespace {

constexpr int kColumns = 16; // of a panel
// Rows of a panel's sums beyond those of a tile: panels lie at distances that are no multiple of
// 4096 bytes, or loads would be taken to depend on stores to the panel beside.
constexpr int kApart = 16;

// Packed weights of a panel's columns at one place along K.
using Packed = const uint8_t* [kColumns];

inline int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// The columns from cols.begin on, at k; those beyond the last repeat it.
inline void find_columns(const Tensor& w, Range cols, int64_t k, const DTypeInfo& info,
                         Packed& packed) {
    for (int i = 0; i < kColumns; ++i) {
        const int64_t n = at_most(cols.begin + i, cols.end - 1);
        packed[i] =
            static_cast<const uint8_t*>(w.data) + (n * w.stride + k) / info.block * info.bytes;
    }
}

template <class Kind> struct Frame {
    static constexpr int kPanels = Kind::kTileCols / kColumns;
    static constexpr int kPanelRows = Kind::kTileRows + kApart;
    using Sums = float (*)[kColumns]; // of a panel; those of the next lie kPanelRows further on

    struct Memory {
        alignas(64) typename Kind::Weights weights;
        // Of a block of rows, or of the whole tile where K is deeper than one unpacking.
        alignas(64) float sums[kPanels][kPanelRows][kColumns];
        alignas(64) typename Kind::Products products[2];
    };
    static_assert(sizeof(Memory) <= 1 << 20, "leaves room for x in a second-level cache");

    // One block of rows over the unpacked depth. Whole steps of rows are read and summed, whatever
    // lies beyond the last row.
    static void multiply_block(const QuantizedRows& x, Range rows, int64_t k, int groups,
                               int panels, Sums sums, Memory* memory) {
        typename Kind::Pipeline pipeline(x, k, memory->weights, memory->products);
        finish_stores();
        for (int g = 0; g < groups; ++g)
            for (int64_t m = rows.begin; m < rows.end; m += Kind::kMicroRows) {
                pipeline.load(g, m);
                for (int i = 0; i < panels; i += 2)
                    pipeline.push(i, sums[i * kPanelRows + m - rows.begin]);
            }
        pipeline.drain();
    }

    // The columns of one unpacking, from k on.
    static void multiply_strip(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                               int64_t k, int first_panel, Memory* memory) {
        constexpr int kStep = 2 * kColumns;
        const int panels = static_cast<int>(cols.end - cols.begin + kStep - 1) / kStep * 2;
        const auto groups = static_cast<int>(at_most(x.cols - k, Kind::kDepth) / kGroup);
        const bool deep = x.cols > Kind::kDepth;
        for (int i = 0; i < panels; ++i)
            Kind::unpack(p.weight, {at_most(cols.begin + i * kColumns, cols.end - 1), cols.end}, k,
                         groups, i, &memory->weights);
        for (int64_t m = rows.begin; m < rows.end; m += Kind::kBlockRows) {
            const Range block = {m, at_most(m + Kind::kBlockRows, rows.end)};
            Sums sums = memory->sums[deep ? first_panel : 0] + (deep ? m - rows.begin : 0);
            if (k == 0)
                for (int i = 0; i < panels; ++i)
                    std::memset(sums + i * kPanelRows, 0, Kind::kBlockRows * sizeof *sums);
            multiply_block(x, block, k, groups, panels, sums, memory);
            if (k + Kind::kDepth >= x.cols) finish_rows(sums[0], kPanelRows, p, block, cols);
        }
    }

    static bool linear(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                       Scratch& scratch) {
        auto* memory = static_cast<Memory*>(scratch.get(sizeof(Memory)));
        if (memory == nullptr) return false;
        const Tiles tiles(Kind::shapes());
        for (int64_t n = cols.begin; n < cols.end; n += Kind::kTileCols)
            for (int64_t m = rows.begin; m < rows.end; m += Kind::kTileRows)
                multiply_tile(x, p, {m, at_most(m + Kind::kTileRows, rows.end)},
                              {n, at_most(n + Kind::kTileCols, cols.end)}, memory);
        return true;
    }

    static void multiply_tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                              Memory* memory) {
        for (int64_t k = 0; k < x.cols; k += Kind::kDepth)
            for (int64_t n = cols.begin; n < cols.end; n += Kind::kStripCols)
                multiply_strip(x, p, rows, {n, at_most(n + Kind::kStripCols, cols.end)}, k,
                               static_cast<int>(n - cols.begin) / kColumns, memory);
    }
};

} // namespace
} // namespace bonsai::cpu::amx
