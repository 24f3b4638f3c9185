// SPDX-License-Identifier: Apache-2.0
// linear_fast with smmla: neon/linear_tile.h, 8 rows x 12 columns of y
// Layout:   two rows of x, or two columns of weights, interleaved: for every 8 of K a register of
//           2 x 8 bytes. smmla adds the 2 x 2 dot products of two such registers.
// Work:     24 accumulators of 2 x 2, 4 registers of x and, one after the other, 6 of weights: 29
//           or 30 of 32. Sums stay in the order of the accumulators until the tile is done.
// Roofline: 24 smmla (32 products each) to 10 loads for 8 of K. A group of 128: 384 smmla and 72
//           operations of the epilogue, so 84 % of the vector operations multiply; where blocks of
//           32 have scales of their own 96 and 54, 64 %.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear_tile.h"

namespace bonsai::cpu {
namespace {

constexpr int kPlane = neon::kDepth * 2; // bytes of two interleaved rows or columns
constexpr int kPairs = 6;                // of columns

// kSteps * 8 of K for 2 P rows and 12 columns.
template <int P, int kSteps>
BONSAI_ALWAYS_INLINE void dot(const int8_t* x, const int8_t* codes, int32x4_t (&acc)[P][kPairs]) {
    BONSAI_UNROLL(4)
    for (int p = 0; p < P; ++p) {
        BONSAI_UNROLL(6)
        for (int c = 0; c < kPairs; ++c)
            acc[p][c] = vdupq_n_s32(0);
    }
    BONSAI_UNROLL(2)
    for (int s = 0; s < kSteps; ++s) {
        int8x16_t a[P];
        BONSAI_UNROLL(4)
        for (int p = 0; p < P; ++p)
            a[p] = vld1q_s8(x + p * kPlane + 16 * s);
        BONSAI_UNROLL(6)
        for (int c = 0; c < kPairs; ++c) {
            const int8x16_t w = vld1q_s8(codes + c * kPlane + 16 * s);
            BONSAI_UNROLL(4)
            for (int p = 0; p < P; ++p)
                acc[p][c] = vmmlaq_s32(acc[p][c], a[p], w);
        }
    }
}

// Scales of two columns, and of two rows, in the order of an accumulator: c0 c1 c0 c1, r0 r0 r1 r1.
inline float32x4_t of_columns(const float* two) {
    const float32x2_t v = vld1_f32(two);
    return vcombine_f32(v, v);
}
inline float32x4_t of_rows(const float* two) {
    return vcombine_f32(vdup_n_f32(two[0]), vdup_n_f32(two[1]));
}

// sums += factor * value
inline void add_scaled(float* sums, float32x4_t value, float32x4_t factor) {
    vst1q_f32(sums, vfmaq_f32(vld1q_f32(sums), value, factor));
}

template <int P> BONSAI_NEVER_INLINE void multiply_low_bit(const neon::Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        int32x4_t acc[P][kPairs];
        dot<P, kGroup / 8>(u.x + g * kGroup * 2, u.codes + g * kGroup * 2, acc);
        BONSAI_UNROLL(4)
        for (int p = 0; p < P; ++p) {
            const float32x4_t x_scale = of_rows(u.x_scale + g * neon::kMostRows + 2 * p);
            BONSAI_UNROLL(6)
            for (int c = 0; c < kPairs; ++c)
                add_scaled(
                    u.sums + (p * kPairs + c) * 4,
                    vmulq_f32(vcvtq_f32_s32(acc[p][c]), of_columns(u.scale + g * 12 + 2 * c)),
                    x_scale);
        }
    }
}

template <int P, bool kOffset> BONSAI_NEVER_INLINE void multiply_blocks(const neon::Micro& u) {
    for (int g = 0; g < u.groups; ++g) {
        float32x4_t group[P][kPairs] = {};
        for (int b = g * neon::kGroupBlocks; b < (g + 1) * neon::kGroupBlocks; ++b) {
            int32x4_t acc[P][kPairs];
            dot<P, kBlock / 8>(u.x + b * kBlock * 2, u.codes + b * kBlock * 2, acc);
            BONSAI_UNROLL(4)
            for (int p = 0; p < P; ++p) {
                const float32x4_t sum = of_rows(u.x_block_sum + b * neon::kMostRows + 2 * p);
                BONSAI_UNROLL(6)
                for (int c = 0; c < kPairs; ++c) {
                    const int at = b * 12 + 2 * c;
                    group[p][c] =
                        vfmaq_f32(group[p][c], vcvtq_f32_s32(acc[p][c]), of_columns(u.scale + at));
                    if (kOffset)
                        group[p][c] = vfmaq_f32(group[p][c], of_columns(u.offset + at), sum);
                }
            }
        }
        BONSAI_UNROLL(4)
        for (int p = 0; p < P; ++p) {
            const float32x4_t x_scale = of_rows(u.x_scale + g * neon::kMostRows + 2 * p);
            BONSAI_UNROLL(6)
            for (int c = 0; c < kPairs; ++c)
                add_scaled(u.sums + (p * kPairs + c) * 4, group[p][c], x_scale);
        }
    }
}

// Two rows of n codes, `stride` apart, interleaved by 8 bytes.
inline void interleave(const int8_t* rows, int64_t stride, int n, int8_t* to) {
    for (int j = 0; j < n; j += 16, to += 32) {
        const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(rows + j));
        const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(rows + stride + j));
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
        vst1q_s8(to + 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
}

struct Smmla {
    static constexpr int kRows = 8;
    static constexpr int kCols = 12;

    static void lay_columns(const int8_t (*codes)[kGroup], int g, int8_t* panel) {
        for (int c = 0; c < kCols; c += 2, panel += kPlane)
            interleave(codes[c], kGroup, kGroup, panel + g * kGroup * 2);
    }
    static void lay_rows(const int8_t* q, int64_t stride, int count, int depth, int8_t* to) {
        // The kernels take 1, 2 or 4 pairs; a pair without rows is zeros.
        const int pairs = count > 4 ? 4 : count > 2 ? 2 : 1;
        for (int p = 0; p < pairs; ++p, to += kPlane) {
            if (count - 2 * p >= 2) {
                interleave(q + 2 * p * stride, stride, depth, to);
                continue;
            }
            int8_t rows[2][neon::kDepth] = {};
            if (count - 2 * p == 1) memcpy(rows[0], q + 2 * p * stride, static_cast<size_t>(depth));
            interleave(rows[0], neon::kDepth, depth, to);
        }
    }
    static void low_bit(const neon::Micro& u) {
        u.rows > 4   ? multiply_low_bit<4>(u)
        : u.rows > 2 ? multiply_low_bit<2>(u)
                     : multiply_low_bit<1>(u);
    }
    static void blocks(const neon::Micro& u, DType dtype) {
        dtype == DType::kQ4_1 ? blocks<true>(u) : blocks<false>(u);
    }
    template <bool kOffset> static void blocks(const neon::Micro& u) {
        u.rows > 4   ? multiply_blocks<4, kOffset>(u)
        : u.rows > 2 ? multiply_blocks<2, kOffset>(u)
                     : multiply_blocks<1, kOffset>(u);
    }
    // Two rows of 6 accumulators [r0 c0, r0 c1, r1 c0, r1 c1] to a row of 12 and another.
    static void order(float* sums) {
        for (int p = 0; p < kRows / 2; ++p, sums += 24) {
            float32x4_t acc[kPairs];
            for (int c = 0; c < kPairs; ++c)
                acc[c] = vld1q_f32(sums + 4 * c);
            for (int c = 0; c < kPairs; c += 2) {
                vst1q_f32(sums + 2 * c,
                          vcombine_f32(vget_low_f32(acc[c]), vget_low_f32(acc[c + 1])));
                vst1q_f32(sums + 12 + 2 * c,
                          vcombine_f32(vget_high_f32(acc[c]), vget_high_f32(acc[c + 1])));
            }
        }
    }
};

bool linear_fast(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Scratch& scratch) {
    return neon::linear_by_tiles<Smmla>(x, p, rows, cols, scratch);
}

} // namespace

void overlay_i8mm(KernelTable& table) {
    table.linear_fast = linear_fast;
}

} // namespace bonsai::cpu
#endif
