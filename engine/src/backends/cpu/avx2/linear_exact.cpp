// SPDX-License-Identifier: Apache-2.0
// linear_exact: y[M,N] = x[M,K] * W[N,K]^T in f32
// Layout:   x f32 rows; W any format. 64 weight rows x 256 of K at a time are expanded to f32
//           panels [K][16] in scratch.
// Maths:    a 6 x 16 block of y in registers over 256 of K, then added to the tile's sums: blocks
//           of 256 keep the rounding error near 4e-7 of the result's size whatever K is.
// Work:     a tile unpacks each weight once for up to 512 rows; its panels (64 KB) stream from L2
//           for every 6 rows, 12 FMAs to 64 bytes. Few rows meet each panel while it is in L1.
// Roofline: compute-bound: 2 FMAs a cycle, 32 flop; few rows by expanding weights.
#if defined(__AVX2__)
#include <immintrin.h>

#include "backends/cpu/avx2/linear.h"
#include "backends/cpu/compiler.h"

namespace bonsai::cpu::avx2 {
namespace {

constexpr int kDepth = 256;
constexpr int kFewRows = 24; // whose passes over a panel leave it in L1

struct Layout {
    alignas(64) float panels[kTilePanels][kDepth][kPanel];
    alignas(64) float sums[kTilePanels][kTileRows][kPanel];
};

template <int R>
void multiply(const float* x, int64_t stride, const float* panel, int64_t depth, float* sums,
              bool first) {
    __m256 acc[R][2];
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
        const __m256 left = _mm256_load_ps(panel);
        const __m256 right = _mm256_load_ps(panel + 8);
        BONSAI_UNROLL(6)
        for (int r = 0; r < R; ++r) {
            const __m256 a = _mm256_broadcast_ss(x + r * stride + k);
            multiply_add(acc[r][0], a, left);
            multiply_add(acc[r][1], a, right);
        }
    }
    BONSAI_UNROLL(6)
    for (int r = 0; r < R; ++r) {
        float* to = sums + r * kPanel;
        _mm256_store_ps(to, first ? acc[r][0] : _mm256_add_ps(_mm256_load_ps(to), acc[r][0]));
        _mm256_store_ps(to + 8,
                        first ? acc[r][1] : _mm256_add_ps(_mm256_load_ps(to + 8), acc[r][1]));
    }
}

using Multiply = void (*)(const float*, int64_t, const float*, int64_t, float*, bool);
constexpr Multiply kMultiply[kMicroRows] = {multiply<1>, multiply<2>, multiply<3>,
                                            multiply<4>, multiply<5>, multiply<6>};

void tile(const Tensor& x, const Projection& p, Range rows, Range cols, Layout* layout) {
    const int64_t panels = (cols.end - cols.begin + kPanel - 1) / kPanel;
    const int64_t batch = rows.end - rows.begin <= kFewRows ? 1 : kTilePanels;
    for (int64_t k = 0; k < x.cols; k += kDepth) {
        const int64_t depth = x.cols - k < kDepth ? x.cols - k : kDepth;
        for (int64_t first = 0; first < panels; first += batch) {
            const int64_t last = first + batch < panels ? first + batch : panels;
            for (int64_t i = first; i < last; ++i)
                unpack_panel(p.weight, cols.begin + i * kPanel, k, depth,
                             layout->panels[i - first][0]);
            for (int64_t m = rows.begin; m < rows.end; m += kMicroRows) {
                const int64_t count = rows.end - m < kMicroRows ? rows.end - m : kMicroRows;
                for (int64_t i = first; i < last; ++i)
                    kMultiply[count - 1](static_cast<const float*>(x.data) + m * x.stride + k,
                                         x.stride, layout->panels[i - first][0], depth,
                                         layout->sums[i][m - rows.begin], k == 0);
            }
        }
    }
    finish_tile(layout->sums[0][0], kTileRows, p, rows, cols);
}

} // namespace

bool linear_exact(const Tensor& x, const Projection& p, Range rows, Range cols, Scratch& scratch) {
    auto* layout = static_cast<Layout*>(scratch.get(sizeof(Layout)));
    if (layout == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; n += kTileCols)
        for (int64_t m = rows.begin; m < rows.end; m += kTileRows)
            tile(x, p, {m, m + kTileRows < rows.end ? m + kTileRows : rows.end},
                 {n, n + kTileCols < cols.end ? n + kTileCols : cols.end}, layout);
    return true;
}

} // namespace bonsai::cpu::avx2
#endif
