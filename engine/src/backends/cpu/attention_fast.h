// SPDX-License-Identifier: Apache-2.0
// attention_fast: out = softmax(scale * q k^T) v with 16-bit factors and 32-bit sums, one head, no
//         mask, for the kernel files of a level, which give it their registers (`Lanes`).
//         Everything is local to the including file.
// Layout: q, k, v, out f32 with any row stride; head h at column h * head_dim. Logits stay in
//         scratch, kKeys keys at a time.
// Maths:  q and k become integers row by row, v column by column of a block of keys, exp(logit -
//         maximum of the block) as it is; the bits are chosen such that sums of head_dim products,
//         and of kKeys, stay below 2^31. A block has its own maximum, so that a key which outweighs
//         all others costs precision in its own block only. Blocks join by online softmax
//         (Milakov and Gimelshein 2018). Errors are some 2e-4 of the result: bf16 has 2e-3.
// Work:   keys and values become integers once for all queries, a block of keys at a time, in
// records
//         that lie one after the other. Then logits as [key][query], a lane is a query: kRows keys
//         x a panel of two registers of queries, two dimensions to a 32-bit lane. p v: kRows
//         queries x a panel of columns, two keys to a lane. A query meets the same operations
//         wherever it lies in a piece.
// Roofline: 4 kQueries operations for each number of k and v: bound by the 16-bit products, twice
//         as many a cycle as in f32.
#pragma once

#include <float.h>
#include <string.h>

#include <utility>

#include "backends/cpu/table.h"

namespace bonsai::cpu {
namespace {

template <class L> struct AttentionFast {
    using V = typename L::V; // floats
    using I = typename L::I; // as many 32-bit integers
    static constexpr int kLanes = L::kLanes;
    static constexpr int kRows = L::kRows;
    static constexpr int kPanel = 2 * kLanes;
    static constexpr int kQueries = 192;         // of a piece: a multiple of kRows and kPanel
    static constexpr int kKeys = 64;             // of a block
    static constexpr float kWeightSteps = 16383; // of exp, with
    static constexpr float kValueSteps = 2047;   // of v: 64 * 16383 * 2047 < 2^31

    // Sizes that follow from the width of a head.
    struct Shape {
        int64_t width;  // head_dim in whole panels
        int64_t k_size; // floats that the keys of a block take, a register of slack included
        float steps;    // of q and k
        int64_t record() const { return k_size + kKeys + kKeys / 2 * width + width; }
    };
    static Shape shape_of(int head_dim) {
        Shape shape;
        shape.width = (head_dim + kPanel - 1) / kPanel * kPanel;
        shape.k_size = (kKeys / 2 + 1) * ((head_dim + 15) / 16 * 16);
        int bits = 14;
        while ((int64_t{head_dim} << (2 * bits)) > INT32_MAX)
            --bits;
        shape.steps = static_cast<float>((1 << bits) - 1);
        return shape;
    }

    // Keys and values of one block and head.
    struct Record {
        int16_t* k;     // [kKeys][head_dim]
        float* k_scale; // [kKeys]
        int32_t* v;     // [panels][kKeys / 2][kPanel]: two keys in a lane
        float* v_scale; // [width]
    };
    static int64_t blocks_of(const AttentionArgs& args) {
        return (args.k.rows + kKeys - 1) / kKeys;
    }
    static Record record_at(const AttentionArgs& args, const Shape& shape, float* packed,
                            int64_t kv_head, int64_t block) {
        float* at = packed + (kv_head * blocks_of(args) + block) * shape.record();
        float* scales = at + shape.k_size;
        float* values = scales + kKeys;
        return {reinterpret_cast<int16_t*>(at), scales, reinterpret_cast<int32_t*>(values),
                values + kKeys / 2 * shape.width};
    }
    static size_t packed_floats(const AttentionArgs& args) {
        return static_cast<size_t>(args.kv_heads * blocks_of(args) *
                                   shape_of(args.head_dim).record());
    }

    // For a piece of queries.
    struct Workspace {
        Shape shape;
        int32_t* q;     // [kQueries / kPanel][head_dim / 2][kPanel]: two dimensions in a lane
        int32_t* p;     // [kKeys / 2][kQueries]: two keys in a lane
        float* logits;  // [kKeys][kPanel]
        float* out;     // [kQueries][width]
        float* q_scale; // [kQueries], times the scale of the op
        float *maximum, *sum, *decay, *weight; // [kQueries]
    };

    static float* row(const Tensor& t, int64_t r) {
        return static_cast<float*>(t.data) + r * t.stride;
    }

    static bool get_workspace(Scratch& scratch, int head_dim, Workspace* w) {
        w->shape = shape_of(head_dim);
        const int64_t q_size = int64_t{kQueries} * ((head_dim + 15) / 16 * 8);
        const int64_t floats = q_size + kKeys / 2 * kQueries + kKeys * kPanel +
                               kQueries * w->shape.width + 5 * kQueries;
        auto* at = static_cast<float*>(scratch.get(static_cast<size_t>(floats) * sizeof(float)));
        if (at == nullptr) return false;
        w->q = reinterpret_cast<int32_t*>(at);
        w->p = w->q + q_size;
        w->logits = at + q_size + kKeys / 2 * kQueries;
        w->out = w->logits + kKeys * kPanel;
        w->q_scale = w->out + kQueries * w->shape.width;
        w->maximum = w->q_scale + kQueries;
        w->sum = w->maximum + kQueries;
        w->decay = w->sum + kQueries;
        w->weight = w->decay + kQueries;
        return true;
    }

    // -- to integers --

    // The n-th part of a row that may end within a register.
    static V load_some(const float* from, int64_t n) {
        if (n >= kLanes) return L::loadu(from);
        alignas(64) float lanes[kLanes] = {};
        memcpy(lanes, from, static_cast<size_t>(n) * sizeof(float));
        return L::load(lanes);
    }

    // Largest magnitude of a row; NaN if it holds a NaN or an infinity.
    static float magnitude(const float* x, int head_dim) {
        V top = L::zero(), poison = L::zero();
        for (int d = 0; d < head_dim; d += kLanes) {
            const V value = load_some(x + d, head_dim - d);
            top = L::max(top, L::abs(value));
            poison = L::fma(value, L::zero(), poison);
        }
        return L::largest(top) + L::sum(poison);
    }

    // What to multiply with so that `top` becomes `steps`; tiny and zero rows become zeros.
    static float inverse_scale(float top, float steps) { return top > 1e-34f ? steps / top : 0; }

    static void pack_queries(const AttentionArgs& args, int64_t column, int64_t begin, int n,
                             const Workspace& w) {
        const int head_dim = args.head_dim;
        memset(w.q, 0, sizeof(int32_t) * kQueries * static_cast<size_t>(head_dim / 2));
        for (int i = 0; i < kQueries; ++i) {
            w.maximum[i] = -FLT_MAX;
            w.sum[i] = w.q_scale[i] = 0;
        }
        for (int i = 0; i < n; ++i) {
            const float* q = row(args.q, begin + i) + column;
            const float top = magnitude(q, head_dim), inverse = inverse_scale(top, w.shape.steps);
            int32_t* to =
                w.q + static_cast<int64_t>(i / kPanel) * head_dim / 2 * kPanel + i % kPanel;
            alignas(64) int16_t codes[2 * kLanes];
            for (int d = 0; d < head_dim; d += kLanes) {
                L::store16(codes,
                           L::round(L::mul(load_some(q + d, head_dim - d), L::set(inverse))));
                for (int j = 0; j < kLanes / 2 && d + 2 * j < head_dim; ++j)
                    memcpy(to + (d / 2 + j) * kPanel, codes + 2 * j, sizeof(int32_t));
            }
            w.q_scale[i] = top / w.shape.steps * args.scale;
        }
    }

    static void pack_keys(const AttentionArgs& args, int64_t column, int64_t begin, int n,
                          float steps, const Record& out) {
        const int head_dim = args.head_dim;
        for (int j = 0; j < n; ++j) {
            const float* k = row(args.k, begin + j) + column;
            const float top = magnitude(k, head_dim);
            const V inverse = L::set(inverse_scale(top, steps));
            // The last register of a row may reach into the next row, which is written after it.
            int16_t* to = out.k + static_cast<int64_t>(j) * head_dim;
            for (int d = 0; d < head_dim; d += kLanes)
                L::store16(to + d, L::round(L::mul(load_some(k + d, head_dim - d), inverse)));
            out.k_scale[j] = top / steps;
        }
    }

    static void pack_values(const AttentionArgs& args, int64_t column, int64_t begin, int n,
                            int64_t width, const Record& out) {
        for (int64_t d = 0; d < width; d += kLanes) {
            const int64_t left = args.head_dim - d > 0 ? args.head_dim - d : 0;
            V top = L::zero(), poison = L::zero();
            for (int j = 0; j < n; ++j) {
                const V value = load_some(row(args.v, begin + j) + column + d, left);
                top = L::max(top, L::abs(value));
                poison = L::fma(value, L::zero(), poison);
            }
            L::store(out.v_scale + d, L::add(L::mul(top, L::set(1.0f / kValueSteps)), poison));
            const V inverse = L::inverse(top, L::set(kValueSteps));
            int32_t* to = out.v + d / kPanel * (kKeys / 2) * kPanel + d % kPanel;
            for (int j = 0; j < n; j += 2, to += kPanel) {
                const float* v = row(args.v, begin + j) + column + d;
                const I first = L::round(L::mul(load_some(v, left), inverse));
                const I second = j + 1 < n
                                     ? L::round(L::mul(load_some(v + args.v.stride, left), inverse))
                                     : L::zero_int();
                L::store_int(to, L::pair(first, second));
            }
        }
    }

    // Key blocks [begin, end) of all heads.
    static void pack(const AttentionArgs& args, Range blocks, float* packed) {
        const Shape shape = shape_of(args.head_dim);
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            const int64_t begin = block * kKeys, left = args.k.rows - begin;
            const int n = static_cast<int>(left < kKeys ? left : kKeys);
            for (int64_t head = 0; head < args.kv_heads; ++head) {
                const Record record = record_at(args, shape, packed, head, block);
                pack_keys(args, head * args.head_dim, begin, n, shape.steps, record);
                pack_values(args, head * args.head_dim, begin, n, shape.width, record);
            }
        }
    }

    // -- logits --

    // Products of R keys and a panel of queries.
    template <int R>
    static void logits_tile(const int16_t* k, int64_t k_stride, const int32_t* q, int pairs,
                            const float* k_scale, const float* q_scale, float* tile) {
        I acc[R][2];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
            acc[r][0] = acc[r][1] = L::zero_int();
        for (int d = 0; d < pairs; ++d) {
            const I q0 = L::load_int(q + d * kPanel), q1 = L::load_int(q + d * kPanel + kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const I key = L::broadcast_pair(k + r * k_stride + 2 * d);
                L::multiply_add(acc[r][0], key, q0);
                L::multiply_add(acc[r][1], key, q1);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const V scale = L::set(k_scale[r]);
            for (int half = 0; half < 2; ++half)
                L::store(tile + r * kPanel + half * kLanes,
                         L::mul(L::to_float(acc[r][half]),
                                L::mul(scale, L::load(q_scale + half * kLanes))));
        }
    }
    using Logits = void (*)(const int16_t*, int64_t, const int32_t*, int, const float*,
                            const float*, float*);
    template <int... R> static Logits logits_rows(int rows, std::integer_sequence<int, R...>) {
        static constexpr Logits kTable[] = {logits_tile<R + 1>...};
        return kTable[rows - 1];
    }

    // Logits of a register of queries to integers of exp(logit - maximum of the block), and how the
    // queries' maximum, sum and weights move on.
    static void softmax(const float* tile, int keys, int lane, const Workspace& w) {
        V top = L::set(-FLT_MAX);
        for (int j = 0; j < keys; ++j)
            top = L::max(top, L::load(tile + j * kPanel));
        const V old = L::load(w.maximum + lane), now = L::max(old, top);
        const V decay = L::exp(L::sub(old, now)), weight = L::exp(L::sub(top, now));
        V total = L::zero();
        const V steps = L::set(kWeightSteps);
        for (int j = 0; j < keys; j += 2) {
            const V first = L::exp(L::sub(L::load(tile + j * kPanel), top));
            total = L::add(total, first);
            I second = L::zero_int();
            if (j + 1 < keys) {
                const V next = L::exp(L::sub(L::load(tile + (j + 1) * kPanel), top));
                total = L::add(total, next);
                second = L::round(L::mul(next, steps));
            }
            L::store_int(w.p + j / 2 * kQueries + lane,
                         L::pair(L::round(L::mul(first, steps)), second));
        }
        L::store(w.maximum + lane, now);
        L::store(w.decay + lane, decay);
        L::store(w.weight + lane, L::mul(weight, L::set(1.0f / kWeightSteps)));
        L::store(w.sum + lane, L::fma(L::load(w.sum + lane), decay, L::mul(total, weight)));
    }

    // -- values --

    // out = out * decay + weight * p v for R queries and a panel of columns.
    template <int R>
    static void values_tile(const int32_t* p, const int32_t* v, int pairs, const float* v_scale,
                            const float* decay, const float* weight, float* out, int64_t stride) {
        I acc[R][2];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
            acc[r][0] = acc[r][1] = L::zero_int();
        for (int j = 0; j < pairs; ++j) {
            const I v0 = L::load_int(v + j * kPanel), v1 = L::load_int(v + j * kPanel + kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const I share = L::broadcast_pair(p + j * kQueries + r);
                L::multiply_add(acc[r][0], share, v0);
                L::multiply_add(acc[r][1], share, v1);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const V shrink = L::set(decay[r]), factor = L::set(weight[r]);
            for (int half = 0; half < 2; ++half) {
                float* to = out + r * stride + half * kLanes;
                const V sum = L::mul(L::to_float(acc[r][half]),
                                     L::mul(factor, L::load(v_scale + half * kLanes)));
                L::store(to, L::fma(L::load(to), shrink, sum));
            }
        }
    }
    using Values = void (*)(const int32_t*, const int32_t*, int, const float*, const float*,
                            const float*, float*, int64_t);
    template <int... R> static Values values_rows(int rows, std::integer_sequence<int, R...>) {
        static constexpr Values kTable[] = {values_tile<R + 1>...};
        return kTable[rows - 1];
    }

    // -- all of it --

    // A block of `keys` keys for the n packed queries.
    static void process_block(int head_dim, const Workspace& w, int n, const Record& block,
                              int keys) {
        const auto all = std::make_integer_sequence<int, kRows>();
        const int64_t width = w.shape.width;
        for (int i = 0; i < n; i += kPanel) {
            const int32_t* q = w.q + static_cast<int64_t>(i) * head_dim / 2;
            for (int j = 0; j < keys; j += kRows) {
                const auto run = logits_rows(keys - j < kRows ? keys - j : kRows, all);
                run(block.k + static_cast<int64_t>(j) * head_dim, head_dim, q, head_dim / 2,
                    block.k_scale + j, w.q_scale + i, w.logits + j * kPanel);
            }
            for (int half = 0; half < kPanel; half += kLanes)
                softmax(w.logits + half, keys, i + half, w);
        }
        for (int64_t d = 0; d < width; d += kPanel) {
            const int32_t* v = block.v + d * (kKeys / 2);
            for (int i = 0; i < n; i += kRows) {
                const auto run = values_rows(n - i < kRows ? n - i : kRows, all);
                run(w.p + i, v, (keys + 1) / 2, block.v_scale + d, w.decay + i, w.weight + i,
                    w.out + i * width + d, width);
            }
        }
    }

    static void store_rows(const AttentionArgs& args, const Workspace& w, int64_t column,
                           int64_t begin, int n) {
        for (int i = 0; i < n; ++i) {
            const float* from = w.out + i * w.shape.width;
            float* to = row(args.out, begin + i) + column;
            const V inverse = L::set(1.0f / w.sum[i]);
            alignas(64) float lanes[kLanes];
            for (int d = 0; d < args.head_dim; d += kLanes) {
                const int left = args.head_dim - d < kLanes ? args.head_dim - d : kLanes;
                L::store(lanes, L::mul(L::load(from + d), inverse));
                memcpy(to + d, lanes, static_cast<size_t>(left) * sizeof(float));
            }
        }
    }

    static bool attention(const AttentionArgs& args, const float* packed, int head,
                          Range query_rows, Scratch& scratch) {
        Workspace w;
        if (!get_workspace(scratch, args.head_dim, &w)) return false;
        const int64_t column = static_cast<int64_t>(head) * args.head_dim;
        const int64_t kv_head = head / (args.heads / args.kv_heads);
        for (int64_t begin = query_rows.begin; begin < query_rows.end; begin += kQueries) {
            const int n = static_cast<int>(
                query_rows.end - begin < kQueries ? query_rows.end - begin : kQueries);
            pack_queries(args, column, begin, n, w);
            memset(w.out, 0, sizeof(float) * kQueries * static_cast<size_t>(w.shape.width));
            for (int64_t block = 0; block < blocks_of(args); ++block) {
                const int64_t left = args.k.rows - block * kKeys;
                process_block(args.head_dim, w, n,
                              record_at(args, w.shape, const_cast<float*>(packed), kv_head, block),
                              static_cast<int>(left < kKeys ? left : kKeys));
            }
            store_rows(args, w, column, begin, n);
        }
        return true;
    }
};

} // namespace
} // namespace bonsai::cpu
