// SPDX-License-Identifier: Apache-2.0
// Products of Q8_0, Q4_0 and Q4_1, with a scale for every 32 of K
// Maths:    a 16 x 32 block of y and a group of 128 are four pairs of tiles of exact 32-bit dot
//           products over 32. Codes are signed (Q4_0 less 8; those of Q4_1 are 0..15 and meet the
//           sums of x codes with the offsets). Scaling and the f32 sums are those of AVX2, in their
//           order, so the results are equal to its results bit for bit.
// Work:     as linear_low_bit.h; tiles of weights have 8 rows of K, those of x 32 bytes a row.
// Roofline: half of the tile products are idle: 64 cycles for 16 x 16 of y and a group, beside
//           which 64 rows of tiles are stored, loaded, converted, scaled and added: 72 to 80.
#pragma once

#include "backends/cpu/amx/linear_frame.h"
#include "backends/cpu/amx/unpack.h"

namespace bonsai::cpu::amx {
namespace {

template <bool Offset> struct Blocks {
    static constexpr int64_t kTileRows = 256, kTileCols = 384, kStripCols = 96, kDepth = 2560;
    static constexpr int kBlockRows = 32, kMicroRows = kEdge;
    static constexpr int kPanels = kStripCols / kColumns, kGroups = kDepth / kGroup;
    static constexpr int kOfGroup = kGroup / kBlock;

    // In the order in which they are used.
    struct Weights {
        alignas(64) uint8_t codes[kGroups][kPanels][kGroupBytes];
        alignas(64) float scale[kGroups][kPanels][kOfGroup][kColumns];
        alignas(64) float offset[Offset ? kGroups : 1][kPanels][kOfGroup][kColumns];
    };
    using Products = int32_t[kOfGroup][2][kEdge][kEdge]; // columns left and right

    // 0, 1: products; 2, 3: weights; 4..7: x.
    static TileShapes shapes() {
        TileShapes shapes;
        for (int t = 4; t < 8; ++t)
            shapes.bytes[t] = kBlock;
        shapes.rows[2] = shapes.rows[3] = kBlock / 4;
        return shapes;
    }
    static void unpack(const Tensor& w, Range cols, int64_t k, int groups, int panel,
                       Weights* weights) {
        const auto kernel = w.dtype == DType::kQ8_0   ? unpack_panel<DType::kQ8_0>
                            : w.dtype == DType::kQ4_0 ? unpack_panel<DType::kQ4_0>
                                                      : unpack_panel<DType::kQ4_1>;
        kernel(w, cols, k, groups, panel, weights);
    }
    template <DType dtype>
    static void unpack_panel(const Tensor& w, Range cols, int64_t k, int groups, int panel,
                             Weights* weights) {
        Packed packed;
        find_columns(w, cols, k, dtype_info(dtype), packed);
        for (int g = 0; g < groups; ++g)
            unpack_blocks<dtype>(packed, weights->codes[g][panel], weights->scale[g][panel],
                                 weights->offset[Offset ? g : 0][panel]);
    }
    class Pipeline;
};

template <bool Offset> class Blocks<Offset>::Pipeline {
  public:
    Pipeline(const QuantizedRows& x, int64_t k, const Weights& weights, Products* buffers)
        : x_(x), k_(k), weights_(weights), buffers_(buffers) {}

    // Tiles 4..7: the blocks of a group of 16 rows.
    BONSAI_ALWAYS_INLINE void load(int g, int64_t m) {
        const int8_t* x = x_.q + m * x_.stride + k_ + g * kGroup;
        const auto x_stride = static_cast<size_t>(x_.stride);
        _tile_loadd(4, x, x_stride);
        _tile_loadd(5, x + kBlock, x_stride);
        _tile_loadd(6, x + 2 * kBlock, x_stride);
        _tile_loadd(7, x + 3 * kBlock, x_stride);
        group_ = g;
        row_ = m;
    }
    // 16 x 32 of y over one group, and the scaling of the block before.
    BONSAI_ALWAYS_INLINE void push(int panel, float* sums) {
        constexpr int kBytes = kBlock / 4 * kRowBytes;
        const uint8_t* codes = weights_.codes[group_][panel];
        Products& out = buffers_[turn_];
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h, codes += kGroupBytes) {
            _tile_zero(0);
            _tile_loadd(2, codes, kRowBytes);
            _tile_dpbssd(0, 4, 2);
            _tile_zero(1);
            _tile_loadd(3, codes + kBytes, kRowBytes);
            _tile_dpbssd(1, 5, 3);
            add_last(2 * h);
            _tile_stored(0, out[0][h], sizeof out[0][0][0]);
            _tile_stored(1, out[1][h], sizeof out[0][0][0]);
            _tile_zero(0);
            _tile_loadd(2, codes + 2 * kBytes, kRowBytes);
            _tile_dpbssd(0, 6, 2);
            _tile_zero(1);
            _tile_loadd(3, codes + 3 * kBytes, kRowBytes);
            _tile_dpbssd(1, 7, 3);
            add_last(2 * h + 1);
            _tile_stored(0, out[2][h], sizeof out[0][0][0]);
            _tile_stored(1, out[3][h], sizeof out[0][0][0]);
        }
        const int64_t group = k_ / kGroup + group_;
        last_ = {x_.scale + group * x_.rows + row_,
                 Offset ? x_.block_sum + group * kOfGroup * x_.rows + row_ : nullptr,
                 weights_.scale[group_][panel], weights_.offset[Offset ? group_ : 0][panel], sums};
        turn_ ^= 1;
    }
    void drain() {
        for (int n = 0; n < kMicroRows / 4; ++n)
            add_last(n);
    }

  private:
    using Factors = const float (*)[kColumns]; // of the blocks of a group
    struct Block {
        const float* x_scale;
        const int32_t* x_sum;
        Factors scale, offset;
        float* sums;
    };

    // sums += x_scale * (scale * products + offset * x_sum), for rows 4 n .. 4 n + 3 of the block
    // before.
    BONSAI_ALWAYS_INLINE void add_last(int n) {
        if (last_.sums == nullptr) return;
        constexpr int kNextSums = (kTileRows + kApart) * kColumns;
        const Products& products = buffers_[turn_ ^ 1];
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            BONSAI_UNROLL(4)
            for (int r = 4 * n; r < 4 * n + 4; ++r) {
                __m512 group = _mm512_setzero_ps();
                BONSAI_UNROLL(4)
                for (int b = 0; b < kOfGroup; ++b) {
                    if (Offset) {
                        const auto x_sum = static_cast<float>(last_.x_sum[b * x_.rows + r]);
                        group = _mm512_fmadd_ps(_mm512_load_ps(last_.offset[h * kOfGroup + b]),
                                                _mm512_set1_ps(x_sum), group);
                    }
                    const __m512i dot = _mm512_load_si512(products[b][h][r]);
                    group = _mm512_fmadd_ps(_mm512_load_ps(last_.scale[h * kOfGroup + b]),
                                            _mm512_cvtepi32_ps(dot), group);
                }
                float* sums = last_.sums + h * kNextSums + r * kColumns;
                _mm512_store_ps(sums, _mm512_fmadd_ps(group, _mm512_set1_ps(last_.x_scale[r]),
                                                      _mm512_load_ps(sums)));
            }
        }
        finish_stores(); // keeps these steps between the tile products around them
    }

    const QuantizedRows& x_;
    int64_t k_;
    const Weights& weights_;
    Products* buffers_;
    int64_t row_ = 0; // what is in tiles
    int group_ = 0;
    Block last_ = {};
    int turn_ = 0;
};

} // namespace
} // namespace bonsai::cpu::amx
