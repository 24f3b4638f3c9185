// SPDX-License-Identifier: Apache-2.0
// head_norm_rope: each head of a row is divided by its root mean square and multiplied by
// gain[head_dim]; then pair i, (a, b), becomes (a cos - b sin, b cos + a sin) with the row's
// cos[i], sin[i]. In place. 4 pairs at a time; the sum in doubles.
#if defined(__aarch64__)
#include <math.h>

#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

struct Head {
    float* x;
    const float* gain;
    const float* cosine;
    const float* sine;
    float inverse; // 1 / root mean square
    int head_dim;
};

// Pairs [begin, half) one at a time; second = first + `apart`.
void rotate_rest(const Head& head, int begin, int step, int apart) {
    for (int i = begin; i < head.head_dim / 2; ++i) {
        const int first = i * step;
        const int second = first + apart;
        const float a = head.x[first] * head.inverse * head.gain[first];
        const float b = head.x[second] * head.inverse * head.gain[second];
        head.x[first] = a * head.cosine[i] - b * head.sine[i];
        head.x[second] = b * head.cosine[i] + a * head.sine[i];
    }
}

// first = a c - b s, second = b c + a s
inline void rotate4(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t s, float32x4_t* first,
                    float32x4_t* second) {
    *first = vfmsq_f32(vmulq_f32(a, c), b, s);
    *second = vfmaq_f32(vmulq_f32(b, c), a, s);
}

void rotate_halves(const Head& head) {
    const int half = head.head_dim / 2;
    int i = 0;
    for (; i + 4 <= half; i += 4) {
        float* x = head.x + i;
        const float32x4_t a =
            vmulq_f32(vmulq_n_f32(vld1q_f32(x), head.inverse), vld1q_f32(head.gain + i));
        const float32x4_t b = vmulq_f32(vmulq_n_f32(vld1q_f32(x + half), head.inverse),
                                        vld1q_f32(head.gain + i + half));
        float32x4_t first, second;
        rotate4(a, b, vld1q_f32(head.cosine + i), vld1q_f32(head.sine + i), &first, &second);
        vst1q_f32(x, first);
        vst1q_f32(x + half, second);
    }
    rotate_rest(head, i, 1, half);
}

void rotate_neighbours(const Head& head) {
    int i = 0;
    for (; i + 4 <= head.head_dim / 2; i += 4) {
        const float32x4x2_t x = vld2q_f32(head.x + 2 * i), gain = vld2q_f32(head.gain + 2 * i);
        const float32x4_t a = vmulq_f32(vmulq_n_f32(x.val[0], head.inverse), gain.val[0]);
        const float32x4_t b = vmulq_f32(vmulq_n_f32(x.val[1], head.inverse), gain.val[1]);
        float32x4x2_t out;
        rotate4(a, b, vld1q_f32(head.cosine + i), vld1q_f32(head.sine + i), &out.val[0],
                &out.val[1]);
        vst2q_f32(head.x + 2 * i, out);
    }
    rotate_rest(head, i, 2, 1);
}

} // namespace

void head_norm_rope(const HeadNormRopeArgs& args, Range rows) {
    for (int64_t s = rows.begin; s < rows.end; ++s) {
        for (int64_t column = 0; column < args.x.cols; column += args.head_dim) {
            float* x = row_of(args.x, s) + column;
            const double squares = row_sums(x, args.head_dim, 0.0).squares;
            const auto inverse = static_cast<float>(1.0 / sqrt(squares / args.head_dim + args.eps));
            const Head head = {
                x,       row_of(args.gain, 0), row_of(args.cos, s), row_of(args.sin, s),
                inverse, args.head_dim};
            if (args.pairs == RopePairs::kHalves)
                rotate_halves(head);
            else
                rotate_neighbours(head);
        }
    }
}

} // namespace bonsai::cpu::neon
#endif
