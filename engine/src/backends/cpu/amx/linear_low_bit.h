// SPDX-License-Identifier: Apache-2.0
// Products of low-bit weights, with a scale for every 128 of K
// Maths:    a 32 x 32 block of y is four tiles of exact 32-bit dot products over a group of 128: 2
//           steps of 64. Scaling and the f32 sum are those of AVX2, in their order, so the results
//           are equal to its results bit for bit.
// Work:     products pass through memory to the vector registers, in two buffers by turns: between
//           the tile products of a block, the block before it is scaled and added. A group of 32
//           rows of x stays in tiles for all panels of a strip.
#pragma once

#include "backends/cpu/amx/linear_frame.h"
#include "backends/cpu/amx/unpack.h"

namespace bonsai::cpu::amx {
namespace {

struct LowBit {
    static constexpr int64_t kTileRows = 256, kTileCols = 384, kStripCols = 96, kDepth = 3072;
    static constexpr int kBlockRows = 32, kMicroRows = 32;
    static constexpr int kPanels = kStripCols / kColumns, kGroups = kDepth / kGroup;

    // In the order in which they are used.
    struct Weights {
        alignas(64) uint8_t codes[kGroups][kPanels][kGroupBytes];
        alignas(64) float scale[kGroups][kPanels][kColumns];
    };
    using Products = int32_t[4][kEdge][kEdge]; // rows above, columns left and right; rows below

    static TileShapes shapes() { return {}; }
    static void unpack(const Tensor& w, Range cols, int64_t k, int groups, int panel,
                       Weights* weights) {
        const auto kernel = w.dtype == DType::kQ1_0    ? unpack_panel<DType::kQ1_0>
                            : w.dtype == DType::kPQ2_0 ? unpack_panel<DType::kPQ2_0>
                                                       : unpack_panel<DType::kPTQ1_0>;
        kernel(w, cols, k, groups, panel, weights);
    }
    template <DType dtype>
    static void unpack_panel(const Tensor& w, Range cols, int64_t k, int groups, int panel,
                             Weights* weights) {
        Packed packed;
        find_columns(w, cols, k, dtype_info(dtype), packed);
        for (int g = 0; g < groups; ++g)
            _mm512_store_ps(weights->scale[g][panel],
                            unpack_group<dtype>(packed, weights->codes[g][panel]));
    }
    class Pipeline;
};

class LowBit::Pipeline {
  public:
    Pipeline(const QuantizedRows& x, int64_t k, const Weights& weights, Products* buffers)
        : x_(x.q + k), x_stride_(static_cast<size_t>(x.stride)),
          x_scale_(x.scale + k / kGroup * x.rows), x_rows_(x.rows), weights_(weights),
          buffers_(buffers) {}

    // Tiles 4, 5: a group of 16 rows; 6, 7: of the 16 below.
    BONSAI_ALWAYS_INLINE void load(int g, int64_t m) {
        const int8_t* x = x_ + m * static_cast<int64_t>(x_stride_) + g * kGroup;
        _tile_loadd(4, x, x_stride_);
        _tile_loadd(5, x + 64, x_stride_);
        _tile_loadd(6, x + kEdge * x_stride_, x_stride_);
        _tile_loadd(7, x + kEdge * x_stride_ + 64, x_stride_);
        group_ = g;
        rows_scale_ = x_scale_ + g * x_rows_ + m;
    }
    // 32 x 32 of y over one group, and the scaling of the block before. Weights stream through the
    // first-level cache, which holds the sums.
    BONSAI_ALWAYS_INLINE void push(int panel, float* sums) {
        const uint8_t* codes = weights_.codes[group_][panel];
        Products& out = buffers_[turn_];
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h, codes += kGroupBytes) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_stream_loadd(2, codes, kRowBytes);
            _tile_dpbssd(0, 4, 2);
            add_last(4 * h);
            _tile_dpbssd(1, 6, 2);
            add_last(4 * h + 1);
            _tile_stream_loadd(3, codes + kEdge * kRowBytes, kRowBytes);
            _tile_dpbssd(0, 5, 3);
            add_last(4 * h + 2);
            _tile_dpbssd(1, 7, 3);
            add_last(4 * h + 3);
            _tile_stored(0, out[h], sizeof out[0][0]);
            _tile_stored(1, out[2 + h], sizeof out[0][0]);
        }
        last_ = {rows_scale_, weights_.scale[group_][panel], sums};
        turn_ ^= 1;
    }
    void drain() {
        for (int n = 0; n < kMicroRows / 4; ++n)
            add_last(n);
    }

  private:
    struct Block {
        const float* x_scale;
        const float* scale;
        float* sums;
    };

    // sums += x_scale * scale * products, for rows 4 n .. 4 n + 3 of the block before.
    BONSAI_ALWAYS_INLINE void add_last(int n) {
        if (last_.sums == nullptr) return;
        constexpr int kNextSums = (kTileRows + kApart) * kColumns;
        const Products& products = buffers_[turn_ ^ 1];
        const __m512 scale[2] = {_mm512_load_ps(last_.scale),
                                 _mm512_load_ps(last_.scale + kColumns)};
        BONSAI_UNROLL(4)
        for (int r = 4 * n; r < 4 * n + 4; ++r) {
            __m512 x_scale = _mm512_set1_ps(last_.x_scale[r]);
            BONSAI_KEEP_512(x_scale); // or it is loaded for each panel
            BONSAI_UNROLL(2)
            for (int h = 0; h < 2; ++h) {
                const __m512i dot = _mm512_load_si512(products[r / kEdge * 2 + h][r % kEdge]);
                float* sums = last_.sums + h * kNextSums + r * kColumns;
                _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                                      _mm512_mul_ps(scale[h], x_scale),
                                                      _mm512_load_ps(sums)));
            }
        }
        finish_stores(); // keeps these steps between the tile products around them
    }

    const int8_t* x_;
    size_t x_stride_;
    const float* x_scale_;
    int64_t x_rows_;
    const Weights& weights_;
    Products* buffers_;
    const float* rows_scale_ = nullptr; // of the rows in tiles
    int group_ = 0;
    Block last_ = {};
    int turn_ = 0;
};

} // namespace
} // namespace bonsai::cpu::amx
