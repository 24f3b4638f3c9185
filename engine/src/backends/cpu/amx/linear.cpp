// SPDX-License-Identifier: Apache-2.0
// linear_fast of the low-bit types on AMX tiles; the other types stay with the level AVX-512, since
// a scale for every 32 of K leaves tiles half empty.
// Layout:   x codes row-major, read as tiles of 16 rows x 64 of K where they lie. Panels of 16
//           columns (avx2/linear_tile.h) are tiles of 64 of K x 16 columns every 1024 bytes. Codes
//           are made signed (code - 1), so that a product needs no correction.
// Maths:    a 32 x 32 block of y is four tiles of exact 32-bit dot products over a group of 128: 2
//           steps of 64. Scaling and the f32 sum are those of AVX2, in their order, so the results
//           are equal to its results bit for bit.
// Work:     products pass through memory to the vector registers, in two buffers by turns: while
//           the tiles of a block are multiplied, the block before it is scaled and added.
//           Unpacking takes about as long as 200 to 500 rows' use of a weight, hence tiles of 1536
//           rows; 96 columns cut widths of 3072 into pieces that 16 threads share evenly.
// Roofline: compute-bound: a tile product is 32768 operations in 16 cycles; the four stores, and
//           for each of 64 rows a conversion, two products with an add, three loads and a store fit
//           beside the eight tile products (128 cycles) of a block and group.
#include "backends/cpu/table.h"

#if defined(BONSAI_TILES_HEADER) || (defined(__AMX_INT8__) && defined(__AVX512VNNI__))
#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/avx2/linear_tile.h"
#include "backends/cpu/avx512/linear.h"

namespace bonsai::cpu::amx {
namespace {

using namespace avx2;

struct Tile {
    static constexpr int kTileRows = 1536, kTileCols = 96, kDepth = 512;
    static constexpr int kMicroRows = 2 * kEdge, kMicroPanels = 2;
    static constexpr bool kWide = false;
};
constexpr int kGroupCodes = kGroup / 4 * kUnit;            // bytes of a group in a panel
constexpr int kNextCodes = Layout<Tile>::kCodeBytes;       // bytes to the pair's other panel
constexpr int kNextScale = Layout<Tile>::kScales * kPanel; // floats, likewise
constexpr int kNextSums = Tile::kTileRows * kPanel;

using Products = int32_t[4][kEdge][kEdge]; // rows above, columns left and right; rows below

struct Memory {
    Layout<Tile> tile; // its `rows` hold the last rows when they are fewer than 32
    alignas(64) Products products[2];
    alignas(64) float last_scale[Tile::kDepth / kGroup][Tile::kMicroRows];
};

static_assert(sizeof(Memory) <= 1 << 20, "scratch that leaves room for x in a second-level cache");

// 32 x 32 of y over one group.
struct Block {
    const int8_t* x;
    int64_t x_stride;
    const float* x_scale; // of the 32 rows
    const uint8_t* codes;
    const float* scale;
    float* sums;
};

// Tiles 0..3: products; 4, 5: rows above and below; 6, 7: columns left and right.
BONSAI_ALWAYS_INLINE void multiply(const Block& b) {
    const auto x_stride = static_cast<size_t>(b.x_stride);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    BONSAI_UNROLL(2)
    for (int s = 0; s < 2; ++s) {
        const int8_t* x = b.x + s * 64;
        const uint8_t* codes = b.codes + s * kEdge * kUnit;
        _tile_loadd(4, x, x_stride);
        _tile_loadd(6, codes, kUnit);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, codes + kNextCodes, kUnit);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x + kEdge * b.x_stride, x_stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
}

BONSAI_ALWAYS_INLINE void store(Products& out) {
    _tile_stored(0, out[0], sizeof out[0][0]);
    _tile_stored(1, out[1], sizeof out[0][0]);
    _tile_stored(2, out[2], sizeof out[0][0]);
    _tile_stored(3, out[3], sizeof out[0][0]);
}

// sums += x_scale * scale * products
BONSAI_ALWAYS_INLINE void add(const Block& b, const Products& products) {
    const __m512 scale[2] = {_mm512_load_ps(b.scale), _mm512_load_ps(b.scale + kNextScale)};
    for (int r = 0; r < Tile::kMicroRows; ++r) {
        const __m512 x_scale = _mm512_set1_ps(b.x_scale[r]);
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            const __m512i dot = _mm512_load_si512(products[r / kEdge * 2 + h][r % kEdge]);
            float* sums = b.sums + h * kNextSums + r * kPanel;
            _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                                  _mm512_mul_ps(scale[h], x_scale),
                                                  _mm512_load_ps(sums)));
        }
    }
}

// Blocks one after the other, the scaling of each one step behind its product.
class Pipeline {
  public:
    explicit Pipeline(Products* buffers) : buffers_(buffers) {}
    BONSAI_ALWAYS_INLINE void push(const Block& b) {
        multiply(b);
        drain();
        store(buffers_[turn_]);
        last_ = b;
        turn_ ^= 1;
    }
    BONSAI_ALWAYS_INLINE void drain() {
        if (last_.sums != nullptr) add(last_, buffers_[turn_ ^ 1]);
    }

  private:
    Products* buffers_;
    Block last_ = {};
    int turn_ = 0;
};

// The last rows, fewer than 32, with zeros in the place of the missing ones.
void copy_last(const QuantizedRows& x, Range rows, int64_t k, int groups, Memory* memory) {
    std::memset(memory->tile.rows, 0, sizeof memory->tile.rows);
    std::memset(memory->last_scale, 0, sizeof memory->last_scale);
    copy_rows<Tile>(x.q + rows.begin * x.stride + k, x.stride, rows.end - rows.begin,
                    groups * kGroup, false, memory->tile.rows);
    for (int g = 0; g < groups; ++g)
        std::memcpy(memory->last_scale[g], x.scale + (k / kGroup + g) * x.rows + rows.begin,
                    static_cast<size_t>(rows.end - rows.begin) * sizeof(float));
}

void multiply_depth(const QuantizedRows& x, Range rows, int64_t k, int groups, int64_t panels,
                    Memory* memory) {
    Layout<Tile>& tile = memory->tile;
    Pipeline pipeline(memory->products);
    for (int64_t m = rows.begin; m < rows.end; m += Tile::kMicroRows) {
        const bool whole = m + Tile::kMicroRows <= rows.end;
        if (!whole) copy_last(x, {m, rows.end}, k, groups, memory);
        const int8_t* q = whole ? x.q + m * x.stride + k : tile.rows;
        const float* x_scale = whole ? x.scale + k / kGroup * x.rows + m : memory->last_scale[0];
        const int64_t next_group = whole ? x.rows : Tile::kMicroRows;
        const int64_t next = m + Tile::kMicroRows;
        prefetch(x, {next, at_most(next + Tile::kMicroRows, rows.end)}, k, groups * kGroup);
        finish_stores();
        for (int64_t i = 0; i < panels; i += 2)
            for (int g = 0; g < groups; ++g)
                pipeline.push({q + g * kGroup, whole ? x.stride : Tile::kDepth,
                               x_scale + g * next_group, tile.codes[i] + g * kGroupCodes,
                               tile.scale[i][g], tile.sums[i][m - rows.begin]});
    }
    pipeline.drain();
}

void multiply_tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                   Memory* memory) {
    const int64_t panels = (cols.end - cols.begin + 2 * kPanel - 1) / (2 * kPanel) * 2;
    const int64_t padded =
        (rows.end - rows.begin + Tile::kMicroRows - 1) / Tile::kMicroRows * Tile::kMicroRows;
    for (int64_t i = 0; i < panels; ++i)
        std::memset(memory->tile.sums[i], 0,
                    sizeof memory->tile.sums[i][0] * static_cast<size_t>(padded));
    for (int64_t k = 0; k < x.cols; k += Tile::kDepth) {
        const auto groups = static_cast<int>(at_most(x.cols - k, Tile::kDepth) / kGroup);
        unpack(p.weight, cols, k, groups, panels, {Tile::kMicroRows, false, 0xff}, &memory->tile);
        multiply_depth(x, rows, k, groups, panels, memory);
    }
    finish_tile(memory->tile.sums[0][0], Tile::kTileRows, p, rows, cols);
}

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    if (dtype_info(p.weight.dtype).block != kGroup)
        return avx512::linear_fast(x, p, rows, cols, scratch);
    auto* memory = static_cast<Memory*>(scratch.get(sizeof(Memory)));
    if (memory == nullptr) return false;
    const Tiles tiles;
    for (int64_t n = cols.begin; n < cols.end; n += Tile::kTileCols)
        for (int64_t m = rows.begin; m < rows.end; m += Tile::kTileRows)
            multiply_tile(x, p, {m, at_most(m + Tile::kTileRows, rows.end)},
                          {n, at_most(n + Tile::kTileCols, cols.end)}, memory);
    return true;
}

} // namespace
} // namespace bonsai::cpu::amx

void bonsai::cpu::overlay_amx_linear(KernelTable& table) {
    table.linear_fast = amx::linear_fast;
    table.linear_piece_rows = amx::Tile::kTileRows;
    table.linear_piece_cols = amx::Tile::kTileCols;
}
#endif
