// SPDX-License-Identifier: Apache-2.0
// attention_fast: out = softmax(scale * q k^T) v, one head, no mask, with bf16 factors and f32 sums
//         on AMX tiles.
// Layout: q, k, v, out f32 with any row stride; head h at column h * head_dim. Everything else is
//         made of tiles of 1 KB that lie one after the other, depth (head_dim rounded up to 32)
//         filled with zeros. Logits and out are transposed: a row is a key or a dimension, a column
//         a query, so that maxima, sums and rescaling work lane by lane.
// Maths:  k q^T for a block of keys, then weights 2^(logit - m), then v^T p. The scale of the op
//         times log2 e is part of q. m is a whole number for each query, so that rescaling by a
//         power of two is exact; it moves up to the block's maximum only when that exceeds it by
//         more than kSlack: most blocks rescale nothing, and a weight has the 8 bits of bf16
//         whatever its size. Sums are of the weights before they are rounded.
//         2^x: x - round(x) in a polynomial of degree 3 (minimax, 7.5e-5 relative; bf16 has 4e-3).
//         Errors are some 3e-3 of the result.
// Work:   keys and values become tiles once for all queries, a block of keys at a time. A panel is
//         32 queries: 2 x 2 tiles of logits or of out at a time, 4 loads for 4 products. Panels go
//         through kGroup keys, which a second-level cache holds, before the next keys are read. A
//         query meets the same operations wherever it lies in a piece.
// Roofline: compute-bound. 32 keys x 32 queries x 128: 32 tile products of 16 cycles; 64 registers
//         of weights with 14 vector operations each on two ports, 450 cycles.
#include "backends/cpu/table.h"

#if defined(BONSAI_TILES_HEADER) || (defined(__AMX_BF16__) && defined(__AVX512BW__))
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "backends/cpu/amx/tiles.h"

namespace bonsai::cpu::amx {
namespace {

constexpr int kTileBytes = 1024;
constexpr int kStep = 32;       // bf16 factors of a product of tiles
constexpr int kPanel = 2;       // tiles of queries side by side
constexpr int kQueries = 192;   // of a piece: whole panels; 24 heads of 1536 tokens are 192 pieces
constexpr int kKeys = 128;      // of a block
constexpr int kGroup = 1024;    // keys whose tiles (0.5 MB) stay in cache while panels use them
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
    float* poison; // [16] zeros; NaN if a key holds a NaN or an infinity
};

int64_t depth_of(const AttentionArgs& args) {
    return rounded_up(args.head_dim, kStep);
}
int64_t blocks_of(const AttentionArgs& args) {
    return (args.k.rows + kKeys - 1) / kKeys;
}
int64_t record_floats(const AttentionArgs& args) {
    return kKeys * depth_of(args) + kEdge;
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
    Bytes* q;       // [kQueries / 16][depth / 32] tiles: 16 pairs of dimensions x 16 queries
    Bytes* p;       // [kPanel][kKeys / 32] tiles: 16 pairs of keys x 16 queries
    float* logits;  // [kPanel][kKeys][16]
    float* out;     // [kQueries / 16][depth][16]
    float *m, *sum; // [kQueries]
};

bool get_workspace(Scratch& scratch, int64_t depth, Workspace* w) {
    const int64_t q = kQueries * depth / 2, p = kPanel * kEdge * kKeys / 2;
    const int64_t floats = 3 * q + 3 * p + 2 * kQueries;
    auto* at = static_cast<float*>(scratch.get(static_cast<size_t>(floats) * sizeof(float)));
    if (at == nullptr) return false;
    w->depth = depth;
    w->q = reinterpret_cast<Bytes*>(at);
    w->p = reinterpret_cast<Bytes*>(at + q);
    w->logits = at + q + p;
    w->out = w->logits + 2 * p;
    w->m = w->out + 2 * q;
    w->sum = w->m + kQueries;
    return true;
}

// -- packing --

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

void pack_queries(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n,
                  const Workspace& w) {
    const __m512 scale = _mm512_set1_ps(args.scale * 1.44269504f);
    const int64_t tiles = rounded_up(n, kPanel * kEdge) / kEdge;
    for (int64_t i = 0; i < tiles * kEdge; ++i) {
        w.m[i] = -INFINITY;
        w.sum[i] = 0;
    }
    for (int64_t t = 0; t < tiles; ++t)
        for (int64_t d = 0; d < w.depth; d += kStep) {
            __m512i rows[kEdge];
            for (int64_t r = 0; r < kEdge; ++r) {
                const int64_t i = t * kEdge + r;
                __m512 poison = _mm512_setzero_ps();
                rows[r] = _mm512_setzero_si512();
                if (i >= n) continue;
                rows[r] = round_row(row(args.q, begin + i) + column + d, args.head_dim - d, scale,
                                    &poison);
                w.sum[i] += _mm512_reduce_add_ps(poison); // a NaN in q shows in all of the row
            }
            store_transposed(rows, w.q + (t * w.depth + d) / kStep * kTileBytes, kEdge);
        }
}

void pack_keys(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n,
               const Record& out) {
    const int64_t depth = depth_of(args);
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 poison = _mm512_setzero_ps();
    for (int64_t j = 0; j < kKeys; ++j) {
        Bytes* to = out.k + j / kEdge * depth / kStep * kTileBytes + j % kEdge * 64;
        for (int64_t d = 0; d < depth; d += kStep, to += kTileBytes) {
            __m512i values = _mm512_setzero_si512();
            if (j < n)
                values =
                    round_row(row(args.k, begin + j) + column + d, args.head_dim - d, one, &poison);
            _mm512_store_si512(to, values);
        }
    }
    _mm512_store_ps(out.poison, _mm512_set1_ps(_mm512_reduce_add_ps(poison)));
}

void pack_values(const AttentionArgs& args, int64_t column, int64_t begin, int64_t n,
                 const Record& out) {
    Bytes* to = out.v;
    for (int64_t d = 0; d < depth_of(args); d += kEdge)
        for (int64_t j = 0; j < kKeys; j += kStep, to += kTileBytes) {
            __m512i pairs[kEdge];
            for (int64_t r = 0; r < kEdge; ++r) {
                const auto value = [&](int64_t key) {
                    return round_bf16(
                        load_some(row(args.v, begin + at_most(key, n - 1)) + column + d,
                                  key < n ? args.head_dim - d : 0));
                };
                pairs[r] = pair_up(value(j + 2 * r), value(j + 2 * r + 1));
            }
            store_transposed(pairs, to, kEdge);
        }
}

// Key blocks [begin, end) of all heads.
void pack(const AttentionArgs& args, Range blocks, float* packed) {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t begin = block * kKeys, n = at_most(args.k.rows - begin, kKeys);
        for (int64_t head = 0; head < args.kv_heads; ++head) {
            const Record record = record_at(args, packed, head, block);
            pack_keys(args, head * args.head_dim, begin, n, record);
            pack_values(args, head * args.head_dim, begin, n, record);
        }
    }
}

// -- products of tiles --

// Tiles 0 to 3 += 2 rows of tiles of a times 2 columns of tiles of b, `steps` tiles each.
BONSAI_ALWAYS_INLINE void multiply(const Bytes* a, int64_t next_a, const Bytes* b, int64_t next_b,
                                   int64_t steps) {
    for (int64_t s = 0; s < steps; ++s, a += kTileBytes, b += kTileBytes) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + next_b, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + next_a, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// The four products' place: 16 rows below each other, the right column of tiles `next` floats on.
BONSAI_ALWAYS_INLINE void store(float* to, int64_t next) {
    _tile_stored(0, to, 64);
    _tile_stored(1, to + next, 64);
    _tile_stored(2, to + kEdge * kEdge, 64);
    _tile_stored(3, to + next + kEdge * kEdge, 64);
}

// Logits of 32 keys, from tile `keys` of the block on, and a panel.
BONSAI_ALWAYS_INLINE void multiply_keys(const Workspace& w, int64_t panel, const Record& block,
                                        int64_t keys) {
    const int64_t next = w.depth / kStep * kTileBytes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    multiply(block.k + keys * next, next, w.q + panel * kPanel * next, next, w.depth / kStep);
    store(w.logits + keys * kEdge * kEdge, kKeys * kEdge);
}

// out += v^T p for 32 dimensions from tile d on.
BONSAI_ALWAYS_INLINE void multiply_values(const Workspace& w, int64_t panel, const Record& block,
                                          int64_t d, int64_t steps, bool first) {
    constexpr int64_t kRow = kKeys / kStep * kTileBytes;
    const int64_t next = w.depth * kEdge;
    float* out = w.out + panel * kPanel * next + d * kEdge * kEdge;
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, out, 64);
        _tile_loadd(1, out + next, 64);
        _tile_loadd(2, out + kEdge * kEdge, 64);
        _tile_loadd(3, out + next + kEdge * kEdge, 64);
    }
    multiply(block.v + d * kRow, kRow, w.p, kRow, steps);
    store(out, next);
}

// -- weights --

// Moves the maximum of 16 queries where a block's logits exceed it, and rescales what was summed.
void raise_maximum(const Workspace& w, int64_t tile, const float* logits, int64_t keys,
                   bool first) {
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

    const __m512 old = _mm512_load_ps(w.m + tile * kEdge);
    const __mmask16 more =
        _mm512_cmp_ps_mask(top[0], _mm512_add_ps(old, _mm512_set1_ps(kSlack)), _CMP_NLE_UQ);
    if (more == 0) return;
    const __m512 now =
        _mm512_mask_roundscale_ps(old, more, top[0], _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    _mm512_store_ps(w.m + tile * kEdge, now);
    const __m512 decay = _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_sub_ps(old, now));
    const __mmask16 sane = _mm512_cmp_ps_mask(_mm512_abs_ps(now), _mm512_set1_ps(kTop), _CMP_LT_OQ);
    float* sum = w.sum + tile * kEdge;
    _mm512_store_ps(sum, _mm512_mask_mul_ps(_mm512_set1_ps(NAN), sane, _mm512_load_ps(sum), decay));
    if (first) return;
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

// Weights of 16 queries and a block, and their sum. They are positive, so adding half of the last
// bit kept and cutting rounds to nearest.
void weigh(const Workspace& w, int64_t tile, const float* logits, Bytes* p, int64_t keys,
           const float* poison) {
    const __m512 m = _mm512_load_ps(w.m + tile * kEdge);
    const Exponent e = {_mm512_sub_ps(m, _mm512_set1_ps(126)),
                        _mm512_sub_ps(_mm512_set1_ps(12582912.0f), m)};
    const __m512i half = _mm512_set1_epi32(0x8000);
    __m512 sum = _mm512_add_ps(_mm512_load_ps(w.sum + tile * kEdge), _mm512_load_ps(poison));
    __m512 more = _mm512_setzero_ps();
    int64_t j = 0;
    BONSAI_UNROLL(4)
    for (; j + 1 < keys; j += 2, p += 64) {
        const __m512 a = weight(_mm512_load_ps(logits + j * kEdge), e),
                     b = weight(_mm512_load_ps(logits + (j + 1) * kEdge), e);
        sum = _mm512_add_ps(sum, a);
        more = _mm512_add_ps(more, b);
        _mm512_store_si512(p, pair_up(_mm512_add_epi32(_mm512_castps_si512(a), half),
                                      _mm512_add_epi32(_mm512_castps_si512(b), half)));
    }
    if (j < keys) {
        const __m512 a = weight(_mm512_load_ps(logits + j * kEdge), e);
        sum = _mm512_add_ps(sum, a);
        _mm512_store_si512(
            p, pair_up(_mm512_add_epi32(_mm512_castps_si512(a), half), _mm512_setzero_si512()));
        j += 2, p += 64;
    }
    for (; j % kStep != 0; j += 2, p += 64)
        _mm512_store_si512(p, _mm512_setzero_si512());
    _mm512_store_ps(w.sum + tile * kEdge, _mm512_add_ps(sum, more));
}

// -- all of it --

// A block of `keys` keys for 32 queries.
void process_block(const Workspace& w, int64_t panel, const Record& block, int64_t keys,
                   bool first) {
    const int64_t steps = (keys + kStep - 1) / kStep;
    for (int64_t s = 0; s < steps; ++s)
        multiply_keys(w, panel, block, 2 * s);
    finish_stores();
    for (int64_t t = 0; t < kPanel; ++t) {
        const int64_t tile = panel * kPanel + t;
        const float* logits = w.logits + t * kKeys * kEdge;
        raise_maximum(w, tile, logits, keys, first);
        weigh(w, tile, logits, w.p + t * kKeys / kStep * kTileBytes, keys, block.poison);
    }
    finish_stores();
    for (int64_t d = 0; d < w.depth / kEdge; d += 2)
        multiply_values(w, panel, block, d, steps, first);
    finish_stores();
}

void store_rows(const AttentionArgs& args, const Workspace& w, int64_t column, int64_t begin,
                int64_t n) {
    alignas(64) float lines[kEdge][kEdge];
    for (int64_t i = 0; i < n; i += kEdge) {
        const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(w.sum + i));
        for (int64_t d = 0; d < args.head_dim; d += kEdge) {
            const float* from = w.out + i * w.depth + d * kEdge;
            __m512i values[kEdge];
            for (int r = 0; r < kEdge; ++r)
                values[r] =
                    _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(from + r * kEdge), inverse));
            store_transposed(values, lines, kEdge);
            const auto bytes =
                static_cast<size_t>(at_most(args.head_dim - d, kEdge)) * sizeof(float);
            for (int64_t r = 0; r < at_most(n - i, kEdge); ++r)
                memcpy(row(args.out, begin + i + r) + column + d, lines[r], bytes);
        }
    }
}

bool attention_fast(const AttentionArgs& args, const float* packed, int head, Range query_rows,
                    Scratch& scratch) {
    Workspace w;
    if (!get_workspace(scratch, depth_of(args), &w)) return false;
    const Tiles tiles;
    const int64_t column = static_cast<int64_t>(head) * args.head_dim;
    const int64_t kv_head = head / (args.heads / args.kv_heads), blocks = blocks_of(args);
    constexpr int64_t kBlocks = kGroup / kKeys;
    for (int64_t begin = query_rows.begin; begin < query_rows.end; begin += kQueries) {
        const int64_t n = at_most(query_rows.end - begin, kQueries);
        pack_queries(args, column, begin, n, w);
        for (int64_t group = 0; group < blocks; group += kBlocks)
            for (int64_t panel = 0; panel * kPanel * kEdge < n; ++panel)
                for (int64_t b = group; b < at_most(group + kBlocks, blocks); ++b)
                    process_block(w, panel, record_at(args, const_cast<float*>(packed), kv_head, b),
                                  at_most(args.k.rows - b * kKeys, kKeys), b == 0);
        store_rows(args, w, column, begin, n);
    }
    return true;
}

} // namespace
} // namespace bonsai::cpu::amx

void bonsai::cpu::overlay_amx_attention_fast(KernelTable& table) {
    table.attention_packed_floats = amx::packed_floats;
    table.attention_pack = amx::pack;
    table.attention_pack_rows = amx::kKeys;
    table.attention_fast = amx::attention_fast;
    table.attention_fast_piece_rows = amx::kQueries;
}
#endif
