// SPDX-License-Identifier: Apache-2.0
// attention: out = softmax(scale * q k^T) v, one head, up to kQueries query rows at a time.
// Layout: q, k, v, out f32 with any row stride; head h at column h * head_dim. Keys come in blocks
//         of kKeys; logits never leave scratch.
// Maths:  logits are kept transposed, [key][query]: a lane is a query, so maximum, exp and sum need
//         no shuffles and keys can be broadcast as they are; q^T, times scale, is packed once.
//         Online softmax (Milakov and Gimelshein 2018): each query has a running maximum m and sum;
//         out = out * exp(m_old - m_new) + p v for each block.
// Work:   logits: 6 keys x 16 queries in registers, summed over at most kChunk of head_dim.
//         p v: 6 queries x 16 columns over the block's keys, v packed to panels of 16 columns.
//         A query meets the same operations wherever it lies in a piece.
// Roofline: 4 * kQueries flop for each number of k and of v, 48 flop/B at 96 queries: bound by FMA.
#include "backends/cpu/table.h"

#ifdef __AVX2__

#include <float.h>
#include <string.h>

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

constexpr int kQueries = 96; // a multiple of 6 and of 16, the two register tiles
constexpr int kKeys = 96;
constexpr int kPanel = 16;  // queries or columns of one panel
constexpr int kChunk = 256; // of head_dim: a 16 KB slice of the q panel stays in L1

struct Workspace {
    float* q;       // [kQueries / 16][head_dim][16], scaled
    float* p;       // [kKeys][kQueries]: logits, then exp of them
    float* k;       // [kKeys][head_dim]
    float* v;       // [panels][kKeys][16]
    float* out;     // [kQueries][panels * 16], not yet divided by the sum
    float* maximum; // [kQueries]
    float* sum;     // [kQueries]
    float* decay;   // [kQueries]: exp(m_old - m_new)
    int panels;     // of 16 columns; the last may be half empty
};

bool get_workspace(Scratch& scratch, int head_dim, Workspace* w) {
    w->panels = (head_dim + kPanel - 1) / kPanel;
    const int64_t padded = static_cast<int64_t>(w->panels) * kPanel;
    const int64_t q_size = static_cast<int64_t>(kQueries) * head_dim;
    const int64_t p_size = static_cast<int64_t>(kKeys) * kQueries;
    const int64_t k_size = static_cast<int64_t>(kKeys) * head_dim;
    const int64_t total =
        q_size + p_size + k_size + padded * kKeys + padded * kQueries + 3 * kQueries;
    auto* memory = static_cast<float*>(scratch.get(total * sizeof(float)));
    if (memory == nullptr) return false;
    w->q = memory;
    w->p = w->q + q_size;
    w->k = w->p + p_size;
    w->v = w->k + k_size;
    w->out = w->v + padded * kKeys;
    w->maximum = w->out + padded * kQueries;
    w->sum = w->maximum + kQueries;
    w->decay = w->sum + kQueries;
    return true;
}

// Queries [begin, begin + n) as columns of panels, zeros after them, times scale.
void pack_queries(const AttentionArgs& args, int64_t column, int64_t begin, int n, float* panels) {
    const int head_dim = args.head_dim;
    memset(panels, 0, sizeof(float) * kQueries * head_dim);
    for (int i = 0; i < n; ++i) {
        const float* q = row_of(args.q, begin + i) + column;
        float* to = panels + static_cast<int64_t>(i / kPanel) * head_dim * kPanel + i % kPanel;
        for (int d = 0; d < head_dim; ++d)
            to[d * kPanel] = q[d] * args.scale;
    }
}

// Keys in one piece of memory: rows of a wide fused buffer would share the same few cache sets and
// a page each.
void pack_keys(const AttentionArgs& args, int64_t column, int64_t begin, int n, float* keys) {
    for (int j = 0; j < n; ++j)
        memcpy(keys + j * args.head_dim, row_of(args.k, begin + j) + column,
               sizeof(float) * args.head_dim);
}

void pack_values(const AttentionArgs& args, int64_t column, int64_t begin, int n, float* panels) {
    for (int j = 0; j < n; ++j) {
        const float* v = row_of(args.v, begin + j) + column;
        float* to = panels + j * kPanel;
        int d = 0;
        for (; d + kPanel <= args.head_dim; d += kPanel, to += kKeys * kPanel) {
            _mm256_store_ps(to, _mm256_loadu_ps(v + d));
            _mm256_store_ps(to + 8, _mm256_loadu_ps(v + d + 8));
        }
        if (d < args.head_dim) {
            _mm256_store_ps(to, _mm256_loadu_ps(v + d));
            _mm256_store_ps(to + 8, _mm256_setzero_ps());
        }
    }
}

// A key and a value of the next block, called once for each of this block's tiles: fused buffers
// put each row on a page of its own, where the hardware does not look ahead.
void prefetch_key(const AttentionArgs& args, int64_t column, int64_t j, int count) {
    if (j >= args.k.rows) return;
    const float* k = row_of(args.k, j) + column;
    const float* v = row_of(args.v, j) + column;
    for (int d = 0; d < count; d += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(k + d), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(v + d), _MM_HINT_T1);
    }
}

// Logits of kRows keys and 16 queries over head_dim entries [0, count): stored, or added to the
// tile.
template <int kRows>
inline void logits_tile(const float* k, int64_t k_stride, const float* q, int count, bool add,
                        float* tile) {
    __m256 acc[kRows][2];
    for (int r = 0; r < kRows; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int d = 0; d < count; ++d) {
        const __m256 q0 = _mm256_load_ps(q + d * kPanel);
        const __m256 q1 = _mm256_load_ps(q + d * kPanel + 8);
        for (int r = 0; r < kRows; ++r) {
            const __m256 key = _mm256_broadcast_ss(k + r * k_stride + d);
            acc[r][0] = _mm256_fmadd_ps(key, q0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(key, q1, acc[r][1]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int half = 0; half < 2; ++half) {
            float* to = tile + r * kQueries + half * 8;
            _mm256_store_ps(to,
                            add ? _mm256_add_ps(_mm256_load_ps(to), acc[r][half]) : acc[r][half]);
        }
    }
}

void logits_rows(int rows, const float* k, int64_t k_stride, const float* q, int count, bool add,
                 float* tile) {
    switch (rows) {
    case 6:
        return logits_tile<6>(k, k_stride, q, count, add, tile);
    case 5:
        return logits_tile<5>(k, k_stride, q, count, add, tile);
    case 4:
        return logits_tile<4>(k, k_stride, q, count, add, tile);
    case 3:
        return logits_tile<3>(k, k_stride, q, count, add, tile);
    case 2:
        return logits_tile<2>(k, k_stride, q, count, add, tile);
    default:
        return logits_tile<1>(k, k_stride, q, count, add, tile);
    }
}

// Keys hidden from a query (j > i) get -inf. `first` = index of the block's first key minus index
// of the panel's first query.
void mask_panel(float* tile, int keys, int64_t first) {
    const __m256 hidden = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFF800000u)));
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int j = 0; j < keys; ++j) {
        const int64_t last_hidden =
            first + j - 1; // panel queries up to this one do not see the key
        if (last_hidden < 0) continue;
        const __m256i limit =
            _mm256_set1_epi32(last_hidden < kPanel ? static_cast<int>(last_hidden) : kPanel);
        for (int half = 0; half < 2; ++half) {
            float* to = tile + j * kQueries + half * 8;
            const __m256i query = _mm256_add_epi32(lane, _mm256_set1_epi32(half * 8));
            const __m256i seen = _mm256_cmpgt_epi32(query, limit);
            _mm256_store_ps(
                to, _mm256_blendv_ps(hidden, _mm256_load_ps(to), _mm256_castsi256_ps(seen)));
        }
    }
}

// Logits of 8 queries to exp(logit - maximum); maximum, sum and decay of these queries move on.
void softmax_lanes(float* tile, int keys, float* maximum, float* sum, float* decay) {
    const __m256 old = _mm256_load_ps(maximum);
    __m256 top0 = old, top1 = old;
    int j = 0;
    for (; j + 2 <= keys; j += 2) {
        top0 = _mm256_max_ps(top0, _mm256_load_ps(tile + j * kQueries));
        top1 = _mm256_max_ps(top1, _mm256_load_ps(tile + (j + 1) * kQueries));
    }
    if (j < keys) top0 = _mm256_max_ps(top0, _mm256_load_ps(tile + j * kQueries));
    const __m256 top = _mm256_max_ps(top0, top1);
    const __m256 shrink = exp8(_mm256_sub_ps(old, top));
    __m256 total = _mm256_setzero_ps();
    for (j = 0; j < keys; ++j) {
        const __m256 p = exp8(_mm256_sub_ps(_mm256_load_ps(tile + j * kQueries), top));
        _mm256_store_ps(tile + j * kQueries, p);
        total = _mm256_add_ps(total, p);
    }
    _mm256_store_ps(maximum, top);
    _mm256_store_ps(decay, shrink);
    _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_load_ps(sum), shrink, total));
}

// out = out * decay + p v for kRows queries and 16 columns.
template <int kRows>
inline void values_tile(const float* p, const float* v, int keys, const float* decay, float* out,
                        int64_t out_stride) {
    __m256 acc[kRows][2];
    for (int r = 0; r < kRows; ++r)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int j = 0; j < keys; ++j) {
        const __m256 v0 = _mm256_load_ps(v + j * kPanel);
        const __m256 v1 = _mm256_load_ps(v + j * kPanel + 8);
        for (int r = 0; r < kRows; ++r) {
            const __m256 weight = _mm256_broadcast_ss(p + j * kQueries + r);
            acc[r][0] = _mm256_fmadd_ps(weight, v0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(weight, v1, acc[r][1]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        const __m256 shrink = _mm256_broadcast_ss(decay + r);
        for (int half = 0; half < 2; ++half) {
            float* to = out + r * out_stride + half * 8;
            _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_load_ps(to), shrink, acc[r][half]));
        }
    }
}

void values_rows(int rows, const float* p, const float* v, int keys, const float* decay, float* out,
                 int64_t out_stride) {
    switch (rows) {
    case 6:
        return values_tile<6>(p, v, keys, decay, out, out_stride);
    case 5:
        return values_tile<5>(p, v, keys, decay, out, out_stride);
    case 4:
        return values_tile<4>(p, v, keys, decay, out, out_stride);
    case 3:
        return values_tile<3>(p, v, keys, decay, out, out_stride);
    case 2:
        return values_tile<2>(p, v, keys, decay, out, out_stride);
    default:
        return values_tile<1>(p, v, keys, decay, out, out_stride);
    }
}

// The block's keys [begin, begin + keys) for all packed queries [first_query, first_query + n).
void process_block(const AttentionArgs& args, const Workspace& w, int64_t kv_column,
                   int64_t first_query, int n, int64_t begin, int keys) {
    const int head_dim = args.head_dim;
    pack_keys(args, kv_column, begin, keys, w.k);
    for (int panel = 0; panel * kPanel < n; ++panel) {
        float* tile = w.p + panel * kPanel;
        for (int d = 0; d < head_dim; d += kChunk) {
            const float* q = w.q + (static_cast<int64_t>(panel) * head_dim + d) * kPanel;
            const int count = head_dim - d < kChunk ? head_dim - d : kChunk;
            for (int j = 0; j < keys; j += 6) {
                logits_rows(keys - j < 6 ? keys - j : 6, w.k + j * head_dim + d, head_dim, q, count,
                            d > 0, tile + j * kQueries);
                prefetch_key(args, kv_column + d, begin + kKeys + panel * (kKeys / 6) + j / 6,
                             count);
            }
        }
        if (args.causal) mask_panel(tile, keys, begin - (first_query + panel * kPanel));
        for (int lane = panel * kPanel; lane < (panel + 1) * kPanel; lane += 8)
            softmax_lanes(w.p + lane, keys, w.maximum + lane, w.sum + lane, w.decay + lane);
    }
    pack_values(args, kv_column, begin, keys, w.v);
    const int64_t out_stride = static_cast<int64_t>(w.panels) * kPanel;
    for (int panel = 0; panel < w.panels; ++panel) {
        const float* v = w.v + static_cast<int64_t>(panel) * kKeys * kPanel;
        for (int i = 0; i < n; i += 6)
            values_rows(n - i < 6 ? n - i : 6, w.p + i, v, keys, w.decay + i,
                        w.out + i * out_stride + panel * kPanel, out_stride);
    }
}

// A row without any visible key (sum 0) becomes zeros.
void store_rows(const AttentionArgs& args, const Workspace& w, int64_t column, int64_t begin,
                int n) {
    for (int i = 0; i < n; ++i) {
        const float* from = w.out + static_cast<int64_t>(i) * w.panels * kPanel;
        float* to = row_of(args.out, begin + i) + column;
        const __m256 inverse = _mm256_set1_ps(w.sum[i] == 0 ? 0.0f : 1.0f / w.sum[i]);
        for (int d = 0; d < args.head_dim; d += 8)
            _mm256_storeu_ps(to + d, _mm256_mul_ps(_mm256_load_ps(from + d), inverse));
    }
}

bool attention(const AttentionArgs& args, int head, Range query_rows, Scratch& scratch) {
    Workspace w;
    if (!get_workspace(scratch, args.head_dim, &w)) return false;
    const int64_t column = static_cast<int64_t>(head) * args.head_dim;
    const int64_t kv_column =
        static_cast<int64_t>(head / (args.heads / args.kv_heads)) * args.head_dim;
    for (int64_t begin = query_rows.begin; begin < query_rows.end; begin += kQueries) {
        const int n =
            static_cast<int>(query_rows.end - begin < kQueries ? query_rows.end - begin : kQueries);
        pack_queries(args, column, begin, n, w.q);
        memset(w.out, 0, sizeof(float) * kQueries * kPanel * w.panels);
        for (int i = 0; i < kQueries; ++i) {
            w.maximum[i] = -FLT_MAX;
            w.sum[i] = 0;
        }
        const int64_t seen = args.causal && begin + n < args.k.rows ? begin + n : args.k.rows;
        for (int64_t key = 0; key < seen; key += kKeys)
            process_block(args, w, kv_column, begin, n, key,
                          static_cast<int>(seen - key < kKeys ? seen - key : kKeys));
        store_rows(args, w, column, begin, n);
    }
    return true;
}

} // namespace

void overlay_avx2_attention(KernelTable& table) {
    table.attention = attention;
    table.attention_piece_rows = kQueries;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_attention(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
