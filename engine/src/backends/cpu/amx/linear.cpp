// SPDX-License-Identifier: Apache-2.0
// linear_fast on AMX tiles
// Layout:   x codes row-major, read as tiles where they lie. Weights in panels of 16 columns,
//           unpacked to tiles for up to 3072 of K (unpack.h).
// Maths:    linear_low_bit.h, linear_blocks.h; equal to the results of AVX2 bit for bit.
// Work:     256 rows of x stay in the second-level cache for the strips of 96 columns that a piece
//           has; 32 rows of a strip keep their sums in the first (linear_frame.h).
// Roofline: compute-bound: a tile product is 32768 operations in 16 cycles; bench/NOTES.md counts
//           what has to be done beside it.
#include "backends/cpu/table.h"

#if defined(BONSAI_TILES_HEADER) || (defined(__AMX_INT8__) && defined(__AVX512VNNI__))
#include "backends/cpu/amx/linear_blocks.h"
#include "backends/cpu/amx/linear_low_bit.h"

namespace bonsai::cpu::amx {
namespace {

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    if (dtype_info(p.weight.dtype).block == kGroup)
        return Frame<LowBit>::linear(x, p, rows, cols, scratch);
    if (p.weight.dtype == DType::kQ4_1)
        return Frame<Blocks<true>>::linear(x, p, rows, cols, scratch);
    return Frame<Blocks<false>>::linear(x, p, rows, cols, scratch);
}

} // namespace
} // namespace bonsai::cpu::amx

void bonsai::cpu::overlay_amx_linear(KernelTable& table) {
    table.linear_fast = amx::linear_fast;
    table.linear_piece = [](DType) -> PieceSize {
        return {amx::LowBit::kTileRows, amx::LowBit::kTileCols};
    };
}
#endif
