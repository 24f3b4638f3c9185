// SPDX-License-Identifier: Apache-2.0
// What amx/attention_fast.cpp lays out in tiles: queries, keys and values as bf16. Only for files
// under amx/; everything here is static.
#pragma once

#include <immintrin.h>
#include <math.h>

#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/table.h"

namespace bonsai::cpu::amx {
namespace {

constexpr int kTileBytes = 1024;
constexpr int kStep = 32;       // bf16 factors of a product of tiles
constexpr int kPanel = 2;       // tiles of queries side by side
constexpr int kQueries = 384;   // of a piece, which reads all keys and values of its head
constexpr int kKeys = 128;      // of a block
constexpr int kGroup = 1536;    // keys whose tiles (0.8 MB) stay in cache while panels use them
constexpr float kSlack = 8;     // so weights are at most 2^8
constexpr float kTop = 1 << 22; // of logits: beyond, f32 has no fraction; they become NaN

using Bytes = uint8_t;

BONSAI_ALWAYS_INLINE int64_t at_most(int64_t x, int64_t limit) {
    return x < limit ? x : limit;
}
BONSAI_ALWAYS_INLINE int64_t rounded_up(int64_t x, int64_t unit) {
    return (x + unit - 1) / unit * unit;
}

// Keys and values of one block and head.
struct Record {
    Bytes* k;      // [kKeys / 16][depth / 32] tiles: 16 keys x 32 dimensions
    Bytes* v;      // [depth / 16][kKeys / 32] tiles: 16 dimensions x 32 keys
    float* poison; // [kKeys / 32][16] zeros; NaN if one of 32 keys holds a NaN or an infinity
};

int64_t depth_of(const AttentionArgs& args) {
    return rounded_up(args.head_dim, kStep);
}
int64_t blocks_of(const AttentionArgs& args) {
    return (args.k.rows + kKeys - 1) / kKeys;
}
int64_t record_floats(const AttentionArgs& args) {
    return kKeys * depth_of(args) + kKeys / kStep * kEdge;
}
Record record_at(const AttentionArgs& args, float* packed, int64_t kv_head, int64_t block) {
    float* at = packed + (kv_head * blocks_of(args) + block) * record_floats(args);
    const int64_t half = kKeys / 2 * depth_of(args);
    return {reinterpret_cast<Bytes*>(at), reinterpret_cast<Bytes*>(at + half), at + 2 * half};
}
size_t packed_floats(const AttentionArgs& args) {
    return static_cast<size_t>(args.kv_heads * blocks_of(args) * record_floats(args));
}

// For a piece of queries.
struct Workspace {
    int64_t depth;
    Bytes* q;      // [kQueries / 16][depth / 32] tiles: 16 pairs of dimensions x 16 queries
    Bytes* p;      // [2][kPanel][kKeys / 32] tiles: 16 pairs of keys x 16 queries
    float* logits; // [2][kPanel][kKeys][16]
    float* out;    // [kQueries / 16][depth][16]
    float *m, *sum, *decay; // [kQueries]
};

bool get_workspace(Scratch& scratch, int64_t depth, Workspace* w) {
    const int64_t q = kQueries * depth / 2, p = kPanel * kEdge * kKeys;
    const int64_t floats = 3 * q + 3 * p + 3 * kQueries;
    auto* at = static_cast<float*>(scratch.get(static_cast<size_t>(floats) * sizeof(float)));
    if (at == nullptr) return false;
    w->depth = depth;
    w->q = reinterpret_cast<Bytes*>(at);
    w->p = reinterpret_cast<Bytes*>(at + q);
    w->logits = at + q + p;
    w->out = w->logits + 2 * p;
    w->m = w->out + 2 * q;
    w->sum = w->m + kQueries;
    w->decay = w->sum + kQueries;
    return true;
}

float* row(const Tensor& t, int64_t r) {
    return static_cast<float*>(t.data) + r * t.stride;
}

// The first `n` of 16 floats, zeros behind them.
BONSAI_ALWAYS_INLINE __m512 load_some(const float* from, int64_t n) {
    const auto mask = static_cast<__mmask16>(n >= kEdge ? 0xffff : n > 0 ? (1 << n) - 1 : 0);
    return _mm512_maskz_loadu_ps(mask, from);
}

// To bf16 (to nearest, ties to even; NaN stays NaN) in the upper half of each lane.
BONSAI_ALWAYS_INLINE __m512i round_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                _mm512_set1_epi32(0x400000));
}

// The upper halves of the lanes of a and b side by side, a below b.
BONSAI_ALWAYS_INLINE __m512i pair_up(__m512i a, __m512i b) {
    return _mm512_mask_blend_epi16(0xAAAAAAAAu, _mm512_srli_epi32(a, 16), b);
}

// 32 floats, of which `left` are there, times `scale` to bf16 in their order; *poison += 0 * x.
BONSAI_ALWAYS_INLINE __m512i round_row(const float* x, int64_t left, __m512 scale, __m512* poison) {
    const __m512 a = load_some(x, left), b = load_some(x + kEdge, left - kEdge);
    const __m512 zero = _mm512_setzero_ps();
    *poison = _mm512_fmadd_ps(a, zero, _mm512_fmadd_ps(b, zero, *poison));
    const __m512i low = _mm512_srli_epi32(round_bf16(_mm512_mul_ps(a, scale)), 16),
                  high = _mm512_srli_epi32(round_bf16(_mm512_mul_ps(b, scale)), 16);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)),
                              _mm512_cvtepi32_epi16(high), 1);
}

// 16 x 16 lanes, transposed, to a tile.
BONSAI_ALWAYS_INLINE void store_transposed(__m512i (&r)[kEdge], void* to, int64_t stride) {
    __m512i t[kEdge];
    BONSAI_UNROLL(8)
    for (int i = 0; i < kEdge; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    BONSAI_UNROLL(4)
    for (int i = 0; i < kEdge; i += 4) { // r[i + c], part l: rows i to i + 3 of column 4 l + c
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    auto* line = static_cast<float*>(to);
    const auto store = [&](int c, __m512i x) {
        _mm512_store_ps(line + c * stride, _mm512_castsi512_ps(x));
    };
    BONSAI_UNROLL(4)
    for (int c = 0; c < 4; ++c) {
        const __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88),
                      odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd),
                      more_even = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88),
                      more_odd = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        store(c, _mm512_shuffle_i32x4(even, more_even, 0x88));
        store(4 + c, _mm512_shuffle_i32x4(odd, more_odd, 0x88));
        store(8 + c, _mm512_shuffle_i32x4(even, more_even, 0xdd));
        store(12 + c, _mm512_shuffle_i32x4(odd, more_odd, 0xdd));
    }
}

// Rows of a head lie far from each other, out of reach of the processor's own prefetching.
BONSAI_ALWAYS_INLINE void prefetch(const Tensor& t, Range rows, int64_t column, int64_t cols) {
    for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t c = 0; c < cols; c += kEdge)
            _mm_prefetch(reinterpret_cast<const char*>(row(t, r) + column + c), _MM_HINT_T0);
}

void pack_queries(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n,
                  const Workspace& w) {
    const __m512 scale = _mm512_set1_ps(args.scale * 1.44269504f);
    const int64_t tiles = rounded_up(n, kPanel * kEdge) / kEdge;
    for (int64_t i = 0; i < tiles * kEdge; ++i)
        w.m[i] = -INFINITY;
    for (int64_t t = 0; t < tiles; ++t) {
        const Range next = {begin + (t + 1) * kEdge, begin + at_most((t + 2) * kEdge, n)};
        prefetch(args.q, next, column, args.head_dim);
        __m512 poison[kEdge] = {}; // a NaN in q shows in all of the row
        for (int64_t d = 0; d < w.depth; d += kStep) {
            __m512i rows[kEdge] = {};
            for (int64_t r = 0; r < at_most(n - t * kEdge, kEdge); ++r)
                rows[r] = round_row(row(args.q, begin + t * kEdge + r) + column + d,
                                    args.head_dim - d, scale, &poison[r]);
            store_transposed(rows, w.q + (t * w.depth + d) / kStep * kTileBytes, kEdge);
        }
        for (int64_t r = 0; r < kEdge; ++r)
            w.sum[t * kEdge + r] = _mm512_reduce_add_ps(poison[r]);
    }
}

// Step `step` of a block: n of its 32 keys are there, from row `begin` on.
void pack_keys(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n, int64_t step,
               const Record& out) {
    const int64_t depth = depth_of(args);
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 poison = _mm512_setzero_ps();
    for (int64_t j = 0; j < kStep; ++j) {
        Bytes* to = out.k + (2 * step + j / kEdge) * depth / kStep * kTileBytes + j % kEdge * 64;
        for (int64_t d = 0; d < depth; d += kStep, to += kTileBytes) {
            __m512i values = _mm512_setzero_si512();
            if (j < n)
                values =
                    round_row(row(args.k, begin + j) + column + d, args.head_dim - d, one, &poison);
            _mm512_store_si512(to, values);
        }
    }
    _mm512_store_ps(out.poison + step * kEdge, _mm512_set1_ps(_mm512_reduce_add_ps(poison)));
}

void pack_values(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n, int64_t step,
                 const Record& out) {
    Bytes* to = out.v + step * kTileBytes;
    for (int64_t d = 0; d < depth_of(args); d += kEdge, to += kKeys / kStep * kTileBytes) {
        __m512i pairs[kEdge];
        for (int64_t r = 0; r < kEdge; ++r) {
            const auto value = [&](int64_t key) {
                return round_bf16(load_some(row(args.v, begin + at_most(key, n - 1)) + column + d,
                                            key < n ? args.head_dim - d : 0));
            };
            pairs[r] = pair_up(value(2 * r), value(2 * r + 1));
        }
        store_transposed(pairs, to, kEdge);
    }
}

// 32 keys a unit, units [begin, end) of all heads.
void pack(const AttentionArgs& args, Range units, float* packed) {
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const int64_t begin = unit * kStep, n = at_most(args.k.rows - begin, kStep);
        for (int64_t head = 0; head < args.kv_heads; ++head) {
            const int64_t column = head * args.head_dim;
            if (head + 1 < args.kv_heads) {
                prefetch(args.k, {begin, begin + n}, column + args.head_dim, args.head_dim);
                prefetch(args.v, {begin, begin + n}, column + args.head_dim, args.head_dim);
            }
            const Record record = record_at(args, packed, head, begin / kKeys);
            pack_keys(args, column, begin, n, begin % kKeys / kStep, record);
            pack_values(args, column, begin, n, begin % kKeys / kStep, record);
        }
    }
}

} // namespace
} // namespace bonsai::cpu::amx
