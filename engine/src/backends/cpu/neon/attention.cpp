// SPDX-License-Identifier: Apache-2.0
// attention: out = softmax(scale * q k^T) v, one head, up to kQueries query rows at a time.
// Layout: q, k, v, out f32 with any row stride; head h at column h * head_dim. Keys come in blocks
//         of kKeys; logits never leave scratch.
// Maths:  logits are kept transposed, [key][query]: a lane is a query, so maximum, exp and sum need
//         no shuffles; q^T, times scale, is packed once into panels of 8 queries.
//         Online softmax (Milakov and Gimelshein 2018): each query has a running maximum m and sum;
//         out = out * exp(m_old - m_new) + p v for each block.
// Work:   logits: 8 keys x 8 queries in registers, summed over at most kChunk of head_dim.
//         p v: 8 queries x 8 columns over the block's keys.
//         A query meets the same operations wherever it lies in a piece.
// Roofline: 4 * kQueries flop for each number of k and of v, 48 flop/B at 96 queries: bound by FMA.
#if defined(__aarch64__)
#include <float.h>

#include "backends/cpu/neon/simd.h"
#include "backends/cpu/table.h"

namespace bonsai::cpu {
namespace {

constexpr int kQueries = 96;
constexpr int kKeys = 96;
constexpr int kPanel = kFloatPanel; // queries or columns of one panel
constexpr int kChunk = 256;         // of head_dim: an 8 KB slice of the q panel stays in L1

struct Workspace {
    float* q;       // [kQueries / 8][head_dim][8], scaled
    float* p;       // [kKeys][kQueries]: logits, then exp of them
    float* k;       // [kKeys][head_dim]
    float* v;       // [head_dim / 8][kKeys][8]
    float* out;     // [kQueries][head_dim], not yet divided by the sum
    float* maximum; // [kQueries]
    float* sum;     // [kQueries]
    float* decay;   // [kQueries]: exp(m_old - m_new)
};

bool get_workspace(Scratch& scratch, int head_dim, Workspace* w) {
    const int64_t q_size = static_cast<int64_t>(kQueries) * head_dim;
    const int64_t p_size = static_cast<int64_t>(kKeys) * kQueries;
    const int64_t k_size = static_cast<int64_t>(kKeys) * head_dim;
    const int64_t total = 2 * q_size + p_size + 2 * k_size + 3 * kQueries;
    auto* memory = static_cast<float*>(scratch.get(static_cast<size_t>(total) * sizeof(float)));
    if (memory == nullptr) return false;
    w->q = memory;
    w->p = w->q + q_size;
    w->k = w->p + p_size;
    w->v = w->k + k_size;
    w->out = w->v + k_size;
    w->maximum = w->out + q_size;
    w->sum = w->maximum + kQueries;
    w->decay = w->sum + kQueries;
    return true;
}

// Queries [begin, begin + n) as columns of panels, zeros after them, times scale.
void pack_queries(const AttentionArgs& args, int64_t column, int64_t begin, int n, float* panels) {
    const int head_dim = args.head_dim;
    memset(panels, 0, sizeof(float) * kQueries * static_cast<size_t>(head_dim));
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
               sizeof(float) * static_cast<size_t>(args.head_dim));
}

void pack_values(const AttentionArgs& args, int64_t column, int64_t begin, int n, float* panels) {
    for (int j = 0; j < n; ++j) {
        const float* v = row_of(args.v, begin + j) + column;
        float* to = panels + j * kPanel;
        for (int d = 0; d < args.head_dim; d += kPanel, to += kKeys * kPanel) {
            vst1q_f32(to, vld1q_f32(v + d));
            vst1q_f32(to + 4, vld1q_f32(v + d + 4));
        }
    }
}

// Logits of R keys and 8 queries over head_dim entries [0, count): stored, or added to the tile.
template <int R>
void logits_tile(const float* k, int64_t k_stride, const float* q, int count, bool add,
                 float* tile) {
    float32x4_t acc[R][2];
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r)
        acc[r][0] = acc[r][1] = vdupq_n_f32(0.0f);
    multiply_add<R>(k, k_stride, q, count, acc);
    BONSAI_UNROLL(8)
    for (int r = 0; r < R; ++r) {
        float* to = tile + r * kQueries;
        vst1q_f32(to, add ? vaddq_f32(vld1q_f32(to), acc[r][0]) : acc[r][0]);
        vst1q_f32(to + 4, add ? vaddq_f32(vld1q_f32(to + 4), acc[r][1]) : acc[r][1]);
    }
}

// Logits of a panel of queries and all keys of the block.
void logits_panel(const Workspace& w, int panel, int head_dim, int keys) {
    for (int d = 0; d < head_dim; d += kChunk) {
        const float* q = w.q + (static_cast<int64_t>(panel) * head_dim + d) * kPanel;
        const int count = head_dim - d < kChunk ? head_dim - d : kChunk;
        int n = 0;
        for (int j = 0; j < keys; j += n) {
            const int left = keys - j;
            n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const auto kernel = n == 8   ? logits_tile<8>
                                : n == 4 ? logits_tile<4>
                                : n == 2 ? logits_tile<2>
                                         : logits_tile<1>;
            kernel(w.k + j * head_dim + d, head_dim, q, count, d > 0,
                   w.p + panel * kPanel + j * kQueries);
        }
    }
}

// Keys hidden from a query (j > i) get -inf. `first` = index of the block's first key minus index
// of the panel's first query.
void mask_panel(float* tile, int keys, int64_t first) {
    const float32x4_t hidden = vdupq_n_f32(-__builtin_inff());
    const int32_t kLanes[4] = {0, 1, 2, 3};
    for (int j = 0; j < keys; ++j) {
        // Queries of the panel up to this one do not see the key.
        const int64_t last_hidden = first + j - 1;
        if (last_hidden < 0) continue;
        const int32x4_t limit =
            vdupq_n_s32(last_hidden < kPanel ? static_cast<int>(last_hidden) : kPanel);
        for (int lane = 0; lane < kPanel; lane += 4) {
            float* to = tile + j * kQueries + lane;
            const int32x4_t query = vaddq_s32(vld1q_s32(kLanes), vdupq_n_s32(lane));
            vst1q_f32(to, vbslq_f32(vcgtq_s32(query, limit), vld1q_f32(to), hidden));
        }
    }
}

// Logits of 4 queries to exp(logit - maximum); maximum, sum and decay of these queries move on.
void softmax_lanes(float* tile, int keys, float* maximum, float* sum, float* decay) {
    const float32x4_t old = vld1q_f32(maximum);
    float32x4_t top0 = old, top1 = old;
    int j = 0;
    for (; j + 2 <= keys; j += 2) {
        top0 = vmaxq_f32(top0, vld1q_f32(tile + j * kQueries));
        top1 = vmaxq_f32(top1, vld1q_f32(tile + (j + 1) * kQueries));
    }
    if (j < keys) top0 = vmaxq_f32(top0, vld1q_f32(tile + j * kQueries));
    const float32x4_t top = vmaxq_f32(top0, top1);
    const float32x4_t shrink = exp4(vsubq_f32(old, top));
    float32x4_t total = vdupq_n_f32(0.0f);
    for (j = 0; j < keys; ++j) {
        const float32x4_t p = exp4(vsubq_f32(vld1q_f32(tile + j * kQueries), top));
        vst1q_f32(tile + j * kQueries, p);
        total = vaddq_f32(total, p);
    }
    vst1q_f32(maximum, top);
    vst1q_f32(decay, shrink);
    vst1q_f32(sum, vfmaq_f32(total, vld1q_f32(sum), shrink));
}

// out = out * decay + p v for 8 queries and 8 columns; rows of p beyond the last query hold the
// weights of zero queries.
void values_tile(const float* p, const float* v, int keys, const float* decay, float* out,
                 int64_t out_stride) {
    float32x4_t acc[8][2];
    BONSAI_UNROLL(8)
    for (int r = 0; r < 8; ++r)
        acc[r][0] = acc[r][1] = vdupq_n_f32(0.0f);
    for (int j = 0; j < keys; ++j, p += kQueries, v += kPanel) {
        const float32x4_t low = vld1q_f32(p), high = vld1q_f32(p + 4);
        const float32x4_t value[2] = {vld1q_f32(v), vld1q_f32(v + 4)};
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            acc[0][h] = vfmaq_laneq_f32(acc[0][h], value[h], low, 0);
            acc[1][h] = vfmaq_laneq_f32(acc[1][h], value[h], low, 1);
            acc[2][h] = vfmaq_laneq_f32(acc[2][h], value[h], low, 2);
            acc[3][h] = vfmaq_laneq_f32(acc[3][h], value[h], low, 3);
            acc[4][h] = vfmaq_laneq_f32(acc[4][h], value[h], high, 0);
            acc[5][h] = vfmaq_laneq_f32(acc[5][h], value[h], high, 1);
            acc[6][h] = vfmaq_laneq_f32(acc[6][h], value[h], high, 2);
            acc[7][h] = vfmaq_laneq_f32(acc[7][h], value[h], high, 3);
        }
    }
    BONSAI_UNROLL(8)
    for (int r = 0; r < 8; ++r) {
        float* to = out + r * out_stride;
        vst1q_f32(to, vfmaq_n_f32(acc[r][0], vld1q_f32(to), decay[r]));
        vst1q_f32(to + 4, vfmaq_n_f32(acc[r][1], vld1q_f32(to + 4), decay[r]));
    }
}

// The block's keys [begin, begin + keys) for all packed queries [first_query, first_query + n).
void process_block(const AttentionArgs& args, const Workspace& w, int64_t kv_column,
                   int64_t first_query, int n, int64_t begin, int keys) {
    const int head_dim = args.head_dim;
    pack_keys(args, kv_column, begin, keys, w.k);
    for (int panel = 0; panel * kPanel < n; ++panel) {
        logits_panel(w, panel, head_dim, keys);
        if (args.causal)
            mask_panel(w.p + panel * kPanel, keys, begin - (first_query + panel * kPanel));
        for (int lane = panel * kPanel; lane < (panel + 1) * kPanel; lane += 4)
            softmax_lanes(w.p + lane, keys, w.maximum + lane, w.sum + lane, w.decay + lane);
    }
    pack_values(args, kv_column, begin, keys, w.v);
    for (int d = 0; d < head_dim; d += kPanel) {
        const float* v = w.v + static_cast<int64_t>(d) * kKeys;
        for (int i = 0; i < n; i += kPanel)
            values_tile(w.p + i, v, keys, w.decay + i, w.out + i * head_dim + d, head_dim);
    }
}

// A row without any visible key (sum 0) becomes zeros.
void store_rows(const AttentionArgs& args, const Workspace& w, int64_t column, int64_t begin,
                int n) {
    for (int i = 0; i < n; ++i) {
        const float* from = w.out + static_cast<int64_t>(i) * args.head_dim;
        float* to = row_of(args.out, begin + i) + column;
        const float inverse = w.sum[i] == 0 ? 0.0f : 1.0f / w.sum[i];
        for (int d = 0; d < args.head_dim; d += 4)
            vst1q_f32(to + d, vmulq_n_f32(vld1q_f32(from + d), inverse));
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
        memset(w.out, 0, sizeof(float) * kQueries * static_cast<size_t>(args.head_dim));
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

void overlay_neon_attention(KernelTable& table) {
    table.attention = attention;
    table.attention_piece_rows = kQueries;
}

} // namespace bonsai::cpu
#endif
