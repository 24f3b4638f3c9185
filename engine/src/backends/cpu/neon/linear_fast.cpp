// SPDX-License-Identifier: Apache-2.0
// linear_fast without a dot-product instruction: linear_tile.h with products of bytes added to
// 16-bit sums (smlal), 3 rows x 8 columns.
// Layout:   both operands as they are, a row of K after the other; a lane is a residue of K mod 8.
// Maths:    low-bit codes are -1 to 2, x codes at most 127: the 16 products of a lane over a group
//           stay below 4064, and pairwise sums of four lanes below 2^14. A block of Q4 has 4
//           products of at most 15 * 127 in a lane, four lanes below 30480. Q8_0: two products
//           of 128 * 127 fill 16 bits, so every 16 of K are added to 32-bit sums (sadalp).
// Roofline: an smlal is 8 products and a core such as Cortex-A72 starts one a cycle: low-bit 3 x 8
//           outputs over a group are 384 of them, with 132 operations around.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear_tile.h"

namespace bonsai::cpu::neon {
namespace {

// 8 rows of pairwise sums to 8 totals; two levels in 16 bits, the last in 32.
inline void join(const int16x8_t (&acc)[8], int32x4_t* low, int32x4_t* high) {
    *low = vpaddlq_s16(vpaddq_s16(vpaddq_s16(acc[0], acc[1]), vpaddq_s16(acc[2], acc[3])));
    *high = vpaddlq_s16(vpaddq_s16(vpaddq_s16(acc[4], acc[5]), vpaddq_s16(acc[6], acc[7])));
}
inline int32x4_t join(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

// 16 of K for R x 8 outputs; the first step of a sum only multiplies.
template <int R, bool kFirst>
BONSAI_ALWAYS_INLINE void step_short(const int8_t* x, const int8_t* codes, int16x8_t (&acc)[R][8]) {
    int8x16_t a[R];
    BONSAI_UNROLL(3)
    for (int r = 0; r < R; ++r)
        a[r] = vld1q_s8(x + r * kDepth);
    BONSAI_UNROLL(8)
    for (int c = 0; c < 8; ++c) {
        const int8x16_t w = vld1q_s8(codes + c * kDepth);
        BONSAI_UNROLL(3)
        for (int r = 0; r < R; ++r) {
            const int8x8_t low = vget_low_s8(a[r]);
            acc[r][c] =
                kFirst ? vmull_s8(low, vget_low_s8(w)) : vmlal_s8(acc[r][c], low, vget_low_s8(w));
            acc[r][c] = vmlal_high_s8(acc[r][c], a[r], w);
        }
    }
}

// Dot products over kSteps * 16 of K in 16-bit sums.
template <int R, int kSteps>
BONSAI_ALWAYS_INLINE void dot_short(const int8_t* x, const int8_t* codes, int32x4_t (&dot)[R][2]) {
    int16x8_t acc[R][8];
    step_short<R, true>(x, codes, acc);
    for (int s = 1; s < kSteps; ++s)
        step_short<R, false>(x + 16 * s, codes + 16 * s, acc);
    BONSAI_UNROLL(3)
    for (int r = 0; r < R; ++r)
        join(acc[r], &dot[r][0], &dot[r][1]);
}

// Dot products over a block of 32 in 32-bit sums.
template <int R>
BONSAI_ALWAYS_INLINE void dot_long(const int8_t* x, const int8_t* codes, int32x4_t (&dot)[R][2]) {
    int32x4_t acc[R][8];
    BONSAI_UNROLL(2)
    for (int s = 0; s < kBlock / 16; ++s) {
        BONSAI_UNROLL(8)
        for (int c = 0; c < 8; ++c) {
            const int8x16_t w = vld1q_s8(codes + c * kDepth + 16 * s);
            BONSAI_UNROLL(3)
            for (int r = 0; r < R; ++r) {
                const int8x16_t a = vld1q_s8(x + r * kDepth + 16 * s);
                const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w));
                const int16x8_t both = vmlal_high_s8(low, a, w);
                acc[r][c] = s == 0 ? vpaddlq_s16(both) : vpadalq_s16(acc[r][c], both);
            }
        }
    }
    BONSAI_UNROLL(3)
    for (int r = 0; r < R; ++r) {
        dot[r][0] = join(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
        dot[r][1] = join(acc[r][4], acc[r][5], acc[r][6], acc[r][7]);
    }
}

// sums += factor * value
inline void add_scaled(float* sums, float32x4_t value, float factor) {
    vst1q_f32(sums, vfmaq_n_f32(vld1q_f32(sums), value, factor));
}

template <int R> BONSAI_NEVER_INLINE void multiply_low_bit(const Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        int32x4_t dot[R][2];
        dot_short<R, kGroup / 16>(u.x + g * kGroup, u.codes + g * kGroup, dot);
        BONSAI_UNROLL(3)
        for (int r = 0; r < R; ++r) {
            BONSAI_UNROLL(2)
            for (int h = 0; h < 2; ++h)
                add_scaled(u.sums + r * 8 + 4 * h,
                           vmulq_f32(vcvtq_f32_s32(dot[r][h]), vld1q_f32(u.scale + g * 8 + 4 * h)),
                           u.x_scale[g * kMostRows + r]);
        }
    }
}

template <int R> BONSAI_NEVER_INLINE void multiply_blocks(const Micro& u, DType dtype) {
    for (int g = 0; g < u.groups; ++g) {
        float32x4_t group[R][2] = {};
        for (int b = g * kGroupBlocks; b < (g + 1) * kGroupBlocks; ++b) {
            int32x4_t dot[R][2];
            if (dtype == DType::kQ8_0)
                dot_long<R>(u.x + b * kBlock, u.codes + b * kBlock, dot);
            else
                dot_short<R, kBlock / 16>(u.x + b * kBlock, u.codes + b * kBlock, dot);
            BONSAI_UNROLL(3)
            for (int r = 0; r < R; ++r) {
                BONSAI_UNROLL(2)
                for (int h = 0; h < 2; ++h) {
                    const int at = b * 8 + 4 * h;
                    group[r][h] =
                        vfmaq_f32(group[r][h], vcvtq_f32_s32(dot[r][h]), vld1q_f32(u.scale + at));
                    if (dtype == DType::kQ4_1)
                        group[r][h] = vfmaq_n_f32(group[r][h], vld1q_f32(u.offset + at),
                                                  u.x_block_sum[b * kMostRows + r]);
                }
            }
        }
        BONSAI_UNROLL(3)
        for (int r = 0; r < R; ++r) {
            BONSAI_UNROLL(2)
            for (int h = 0; h < 2; ++h)
                add_scaled(u.sums + r * 8 + 4 * h, group[r][h], u.x_scale[g * kMostRows + r]);
        }
    }
}

struct Widening {
    static constexpr int kRows = 3;
    static constexpr int kCols = 8;

    static void lay_columns(const int8_t (*codes)[kGroup], int g, int8_t* panel) {
        for (int c = 0; c < kCols; ++c)
            memcpy(panel + c * kDepth + g * kGroup, codes[c], kGroup);
    }
    static void lay_rows(const int8_t* q, int64_t stride, int count, int depth, int8_t* to) {
        for (int r = 0; r < count; ++r)
            memcpy(to + r * kDepth, q + r * stride, static_cast<size_t>(depth));
    }
    static void low_bit(const Micro& u) {
        u.rows == 3   ? multiply_low_bit<3>(u)
        : u.rows == 2 ? multiply_low_bit<2>(u)
                      : multiply_low_bit<1>(u);
    }
    static void blocks(const Micro& u, DType dtype) {
        u.rows == 3   ? multiply_blocks<3>(u, dtype)
        : u.rows == 2 ? multiply_blocks<2>(u, dtype)
                      : multiply_blocks<1>(u, dtype);
    }
    static void order(float*) {}
};

} // namespace

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    return linear_by_tiles<Widening>(x, p, rows, cols, scratch);
}

} // namespace bonsai::cpu::neon
#endif
