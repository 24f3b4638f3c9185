// SPDX-License-Identifier: Apache-2.0
// linear_exact: y[M,N] = x[M,K] * W[N,K]^T in f32
// Layout:   x f32 rows; W any format. 96 weight rows x 256 of K at a time are expanded to f32
//           panels [K][8] in scratch.
// Maths:    an 8 x 8 block of y in registers over 256 of K, then added to the tile's sums: blocks
//           of 256 keep the rounding error near 4e-7 of the result's size whatever K is.
// Work:     a tile unpacks each weight once for up to 512 rows; its panels (96 KB) stream from L2
//           for every 8 rows, 64 multiply-adds to 128 bytes.
// Roofline: compute-bound: 64 multiply-adds to 16 loads, where cores start one or two of the first
//           for each of the second.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

struct Layout {
    alignas(64) float panels[kTileCols / kFloatPanel][kDepth * kFloatPanel];
    alignas(64) float sums[kTileRows][kTileCols];
};

// R rows x 8 columns, stored (`first`) or added to the sums.
template <int R>
void multiply(const float* x, int64_t stride, const float* panel, int64_t depth, float* sums,
              bool first) {
    float32x4_t acc[R][2];
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = vdupq_n_f32(0.0f);
    multiply_add<R>(x, stride, panel, depth, acc);
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r) {
        float* to = sums + r * kTileCols;
        vst1q_f32(to, first ? acc[r][0] : vaddq_f32(vld1q_f32(to), acc[r][0]));
        vst1q_f32(to + 4, first ? acc[r][1] : vaddq_f32(vld1q_f32(to + 4), acc[r][1]));
    }
}

void tile(const Tensor& x, const Projection& p, Range rows, Range cols, Layout* layout) {
    const int64_t width = cols.end - cols.begin;
    for (int64_t k = 0; k < x.cols; k += kDepth) {
        const int64_t depth = x.cols - k < kDepth ? x.cols - k : kDepth;
        for (int64_t n = 0; n < width; n += kFloatPanel)
            unpack_panel(p.weight, cols.begin + n, k, depth, layout->panels[n / kFloatPanel]);
        int64_t count = 0;
        for (int64_t m = rows.begin; m < rows.end; m += count) {
            const int64_t left = rows.end - m;
            count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const auto kernel = count == 8   ? multiply<8>
                                : count == 4 ? multiply<4>
                                : count == 2 ? multiply<2>
                                             : multiply<1>;
            const float* from = row_of(x, m) + k;
            for (int64_t n = 0; n < width; n += kFloatPanel)
                kernel(from, x.stride, layout->panels[n / kFloatPanel], depth,
                       layout->sums[m - rows.begin] + n, k == 0);
        }
    }
    for (int64_t m = rows.begin; m < rows.end; ++m)
        finish_row(layout->sums[m - rows.begin], p, m, cols.begin, cols.end);
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

} // namespace bonsai::cpu::neon
#endif
