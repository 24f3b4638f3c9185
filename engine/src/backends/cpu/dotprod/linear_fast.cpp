// SPDX-License-Identifier: Apache-2.0
// linear_fast with sdot: neon/linear_tile.h, 8 rows x 12 columns of y
// Layout:   four rows of x, or four columns of weights, interleaved: for every 4 of K a register of
//           4 x 4 bytes. sdot multiplies the 4 columns of one register with one row of another.
// Work:     24 accumulators, 2 registers of x and 3 of weights: 29 of 32.
// Roofline: 24 sdot (16 products each) to 5 loads for 4 of K. A group of 128: 768 sdot and 72
//           operations of the epilogue, so 91 % of the vector operations multiply; where blocks of
//           32 have scales of their own 192 and 54, 78 %.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear_tile.h"

namespace bonsai::cpu {
namespace {

constexpr int kPlane = neon::kDepth * 4; // bytes of four interleaved rows or columns

// kSteps * 4 of K for kFours * 4 rows and 12 columns.
template <int kFours, int kSteps>
BONSAI_ALWAYS_INLINE void dot(const int8_t* x, const int8_t* codes,
                              int32x4_t (&acc)[4 * kFours][3]) {
    BONSAI_UNROLL(8)
    for (int r = 0; r < 4 * kFours; ++r)
        acc[r][0] = acc[r][1] = acc[r][2] = vdupq_n_s32(0);
    BONSAI_UNROLL(2)
    for (int s = 0; s < kSteps; ++s) {
        const int8x16_t w[3] = {vld1q_s8(codes + 16 * s), vld1q_s8(codes + kPlane + 16 * s),
                                vld1q_s8(codes + 2 * kPlane + 16 * s)};
        BONSAI_UNROLL(2)
        for (int q = 0; q < kFours; ++q) {
            const int8x16_t a = vld1q_s8(x + q * kPlane + 16 * s);
            BONSAI_UNROLL(3)
            for (int c = 0; c < 3; ++c) {
                acc[4 * q][c] = vdotq_laneq_s32(acc[4 * q][c], w[c], a, 0);
                acc[4 * q + 1][c] = vdotq_laneq_s32(acc[4 * q + 1][c], w[c], a, 1);
                acc[4 * q + 2][c] = vdotq_laneq_s32(acc[4 * q + 2][c], w[c], a, 2);
                acc[4 * q + 3][c] = vdotq_laneq_s32(acc[4 * q + 3][c], w[c], a, 3);
            }
        }
    }
}

// sums += factor * value
inline void add_scaled(float* sums, float32x4_t value, float factor) {
    vst1q_f32(sums, vfmaq_n_f32(vld1q_f32(sums), value, factor));
}

template <int kFours> BONSAI_NEVER_INLINE void multiply_low_bit(const neon::Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        int32x4_t acc[4 * kFours][3];
        dot<kFours, kGroup / 4>(u.x + g * kGroup * 4, u.codes + g * kGroup * 4, acc);
        BONSAI_UNROLL(8)
        for (int r = 0; r < 4 * kFours; ++r) {
            BONSAI_UNROLL(3)
            for (int c = 0; c < 3; ++c)
                add_scaled(u.sums + r * 12 + 4 * c,
                           vmulq_f32(vcvtq_f32_s32(acc[r][c]), vld1q_f32(u.scale + g * 12 + 4 * c)),
                           u.x_scale[g * neon::kMostRows + r]);
        }
    }
}

template <int kFours, bool kOffset> BONSAI_NEVER_INLINE void multiply_blocks(const neon::Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        float32x4_t group[4 * kFours][3] = {};
        for (int b = g * neon::kGroupBlocks; b < (g + 1) * neon::kGroupBlocks; ++b) {
            int32x4_t acc[4 * kFours][3];
            dot<kFours, kBlock / 4>(u.x + b * kBlock * 4, u.codes + b * kBlock * 4, acc);
            BONSAI_UNROLL(8)
            for (int r = 0; r < 4 * kFours; ++r) {
                BONSAI_UNROLL(3)
                for (int c = 0; c < 3; ++c) {
                    const int at = b * 12 + 4 * c;
                    group[r][c] =
                        vfmaq_f32(group[r][c], vcvtq_f32_s32(acc[r][c]), vld1q_f32(u.scale + at));
                    if (kOffset)
                        group[r][c] = vfmaq_n_f32(group[r][c], vld1q_f32(u.offset + at),
                                                  u.x_block_sum[b * neon::kMostRows + r]);
                }
            }
        }
        BONSAI_UNROLL(8)
        for (int r = 0; r < 4 * kFours; ++r) {
            BONSAI_UNROLL(3)
            for (int c = 0; c < 3; ++c)
                add_scaled(u.sums + r * 12 + 4 * c, group[r][c],
                           u.x_scale[g * neon::kMostRows + r]);
        }
    }
}

// Four rows of n codes, `stride` apart, interleaved by 4 bytes.
inline void interleave(const int8_t* rows, int64_t stride, int n, int8_t* to) {
    for (int j = 0; j < n; j += 16, to += 64) {
        int32x4x4_t r;
        for (int i = 0; i < 4; ++i)
            r.val[i] = vreinterpretq_s32_s8(vld1q_s8(rows + i * stride + j));
        vst4q_s32(reinterpret_cast<int32_t*>(to), r);
    }
}

struct Sdot {
    static constexpr int kRows = 8;
    static constexpr int kCols = 12;

    static void lay_columns(const int8_t (*codes)[kGroup], int g, int8_t* panel) {
        for (int c = 0; c < kCols; c += 4, panel += kPlane)
            interleave(codes[c], kGroup, kGroup, panel + g * kGroup * 4);
    }
    static void lay_rows(const int8_t* q, int64_t stride, int count, int depth, int8_t* to) {
        for (int r = 0; r < count; r += 4, q += 4 * stride, to += kPlane) {
            if (count - r >= 4) {
                interleave(q, stride, depth, to);
                continue;
            }
            int8_t rows[4][neon::kDepth] = {};
            for (int i = 0; i < count - r; ++i)
                memcpy(rows[i], q + i * stride, static_cast<size_t>(depth));
            interleave(rows[0], neon::kDepth, depth, to);
        }
    }
    static void low_bit(const neon::Micro& u) {
        u.rows > 4 ? multiply_low_bit<2>(u) : multiply_low_bit<1>(u);
    }
    static void blocks(const neon::Micro& u, DType dtype) {
        if (dtype == DType::kQ4_1)
            u.rows > 4 ? multiply_blocks<2, true>(u) : multiply_blocks<1, true>(u);
        else
            u.rows > 4 ? multiply_blocks<2, false>(u) : multiply_blocks<1, false>(u);
    }
    static void order(float*) {}
};

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    return neon::linear_by_tiles<Sdot>(x, p, rows, cols, scratch);
}

} // namespace

void overlay_dotprod(KernelTable& table) {
    table.linear_fast = linear_fast;
}

} // namespace bonsai::cpu
#endif
