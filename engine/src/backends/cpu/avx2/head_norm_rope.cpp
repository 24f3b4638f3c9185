// SPDX-License-Identifier: Apache-2.0
// head_norm_rope: each head of a row is divided by its root mean square and multiplied by
// gain[head_dim]; then pair i, (a, b), becomes (a cos - b sin, b cos + a sin) with the row's
// cos[i], sin[i]. In place. 8 pairs at a time; the sum in doubles.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include <math.h>

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
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

inline __m256 scaled(const Head& head, int at, __m256 inverse) {
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(head.x + at), inverse),
                         _mm256_loadu_ps(head.gain + at));
}

void rotate_halves(const Head& head) {
    const __m256 inverse = _mm256_set1_ps(head.inverse);
    const int half = head.head_dim / 2;
    int i = 0;
    for (; i + 8 <= half; i += 8) {
        const __m256 a = scaled(head, i, inverse), b = scaled(head, i + half, inverse);
        const __m256 c = _mm256_loadu_ps(head.cosine + i), s = _mm256_loadu_ps(head.sine + i);
        _mm256_storeu_ps(head.x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(head.x + i + half, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
    rotate_rest(head, i, 1, half);
}

// Each number of four is used for both members of a pair.
inline __m256 twice_each(const float* four) {
    const __m128 x = _mm_loadu_ps(four);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_unpacklo_ps(x, x)),
                                _mm_unpackhi_ps(x, x), 1);
}

void rotate_neighbours(const Head& head) {
    const __m256 inverse = _mm256_set1_ps(head.inverse);
    int i = 0;
    for (; i + 4 <= head.head_dim / 2; i += 4) {
        const __m256 ab = scaled(head, 2 * i, inverse);
        const __m256 ba = _mm256_permute_ps(ab, 0xB1);
        const __m256 cross = _mm256_mul_ps(ba, twice_each(head.sine + i));
        // Even lanes a c - b s, odd lanes b c + a s.
        _mm256_storeu_ps(head.x + 2 * i,
                         _mm256_fmaddsub_ps(ab, twice_each(head.cosine + i), cross));
    }
    rotate_rest(head, i, 2, 1);
}

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

} // namespace

void overlay_avx2_head_norm_rope(KernelTable& table) {
    table.head_norm_rope = head_norm_rope;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_head_norm_rope(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
