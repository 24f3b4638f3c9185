// SPDX-License-Identifier: Apache-2.0
// The weights of amx/attention_fast.cpp: maxima of logits and powers of two, 16 queries a register.
// Only for files under amx/; everything here is static.
#pragma once

#include "backends/cpu/amx/attention_pack.h"

namespace bonsai::cpu::amx {
namespace {

// Moves the maximum of 16 queries where a block's logits exceed it; true if one moved: then what
// was summed in `out` is to be multiplied by `decay`.
bool raise_maximum(const Workspace& w, int64_t tile, const float* logits, int64_t keys,
                   __m512 poison) {
    __m512 top[4];
    for (int i = 0; i < 4; ++i)
        top[i] = _mm512_load_ps(logits);
    int64_t j = 1;
    for (; j + 4 <= keys; j += 4)
        BONSAI_UNROLL(4)
    for (int i = 0; i < 4; ++i)
        top[i] = _mm512_max_ps(top[i], _mm512_load_ps(logits + (j + i) * kEdge));
    for (; j < keys; ++j)
        top[0] = _mm512_max_ps(top[0], _mm512_load_ps(logits + j * kEdge));
    top[0] = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));

    float* sum = w.sum + tile * kEdge;
    const __m512 old = _mm512_load_ps(w.m + tile * kEdge);
    const __m512 before = _mm512_add_ps(_mm512_load_ps(sum), poison);
    const __mmask16 more =
        _mm512_cmp_ps_mask(top[0], _mm512_add_ps(old, _mm512_set1_ps(kSlack)), _CMP_NLE_UQ);
    if (more == 0) {
        _mm512_store_ps(sum, before);
        return false;
    }
    const __m512 now =
        _mm512_mask_roundscale_ps(old, more, top[0], _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const __m512 decay = _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_sub_ps(old, now));
    const __mmask16 sane = _mm512_cmp_ps_mask(_mm512_abs_ps(now), _mm512_set1_ps(kTop), _CMP_LT_OQ);
    _mm512_store_ps(w.m + tile * kEdge, now);
    _mm512_store_ps(w.decay + tile * kEdge, decay);
    _mm512_store_ps(sum, _mm512_mask_mul_ps(_mm512_set1_ps(NAN), sane, before, decay));
    return true;
}

void rescale(const Workspace& w, int64_t tile) {
    const __m512 decay = _mm512_load_ps(w.decay + tile * kEdge);
    float* out = w.out + tile * w.depth * kEdge;
    for (int64_t d = 0; d < w.depth; ++d, out += kEdge)
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), decay));
}

// What 2^x needs of a query's maximum m, a whole number.
struct Exponent {
    __m512 least;  // logits below count as this one
    __m512 offset; // 1.5 * 2^23 - m: a logit added to it ends in the bits of round(logit) - m
};

// 2^(logit - m)
BONSAI_ALWAYS_INLINE __m512 weight(__m512 logit, const Exponent& e) {
    const __m512 x = _mm512_max_ps(logit, e.least);
    const __m512 shifted = _mm512_add_ps(x, e.offset);
    const __m512 r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, e.offset));
    __m512 y = _mm512_set1_ps(0.05517166853f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.24261112511f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.69326096773f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.99992805719f));
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// Weights of 16 queries and 32 keys, in pieces that fit between products of tiles.
class Weigher {
  public:
    // `products` of them are to come between these weights.
    BONSAI_ALWAYS_INLINE Weigher(const Workspace& w, int64_t tile, const float* logits, Bytes* p,
                                 int64_t products)
        : to_(w.sum + tile * kEdge), sum_(_mm512_load_ps(to_)), logits_(logits), p_(p),
          piece_(products > kPairs ? 1 : kPairs / (products > 0 ? products : 1)) {
        const __m512 m = _mm512_load_ps(w.m + tile * kEdge);
        e_ = {_mm512_sub_ps(m, _mm512_set1_ps(126)), _mm512_sub_ps(_mm512_set1_ps(12582912.0f), m)};
    }
    BONSAI_ALWAYS_INLINE void next() { weigh(at_most(piece_, left_)); }
    BONSAI_ALWAYS_INLINE void finish() {
        weigh(left_);
        _mm512_store_ps(to_, sum_);
    }

  private:
    static constexpr int64_t kPairs = kStep / 2;

    // Weights are positive, so adding half of the last bit kept and cutting rounds to nearest.
    BONSAI_ALWAYS_INLINE void weigh(int64_t pairs) {
        const __m512i half = _mm512_set1_epi32(0x8000);
        left_ -= pairs;
        for (int64_t i = 0; i < pairs; ++i, logits_ += 2 * kEdge, p_ += 64) {
            const __m512 a = weight(_mm512_load_ps(logits_), e_),
                         b = weight(_mm512_load_ps(logits_ + kEdge), e_);
            sum_ = _mm512_add_ps(sum_, _mm512_add_ps(a, b));
            _mm512_store_si512(p_, pair_up(_mm512_add_epi32(_mm512_castps_si512(a), half),
                                           _mm512_add_epi32(_mm512_castps_si512(b), half)));
        }
    }

    float* to_;
    __m512 sum_;
    const float* logits_;
    Bytes* p_;
    int64_t piece_, left_ = kPairs;
    Exponent e_;
};

} // namespace
} // namespace bonsai::cpu::amx
