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
//         32 queries: 2 x 2 tiles of logits or of out at a time, 4 loads for 4 products. While the
//         vector registers make a block's weights, 32 keys a step, the tiles make the logits of the
//         block after it and add up the values of the block before it: their instructions
//         alternate, so that the core overlaps them. Panels go through kGroup keys, which a
//         second-level cache holds, before the next keys are read. A query meets the same
//         operations wherever it lies in a piece.
// Roofline: compute-bound by count. 32 keys x 32 queries x 128: 32 tile products of 16 cycles; 64
//         registers of weights with 12 vector operations each on two ports, 384 cycles. Measured,
//         the 32 loads of tiles hold it back (bench/NOTES.md).
#if defined(BONSAI_TILES_HEADER) || (defined(__AMX_BF16__) && defined(__AVX512BW__))
#include <string.h>

#include "backends/cpu/amx/attention_weights.h"

namespace bonsai::cpu::amx {
namespace {

// A block of keys on its way: logits, then weights, then values.
struct Block {
    Record record;
    int64_t keys, steps; // of 32 keys
    float* logits;
    Bytes* p;
};

// Half of the blocks use one half of the logits and weights, so that two can be under way.
Block block_at(const AttentionArgs& args, const Workspace& w, float* packed, int64_t kv_head,
               int64_t b) {
    const int64_t keys = at_most(args.k.rows - b * kKeys, kKeys), half = b % 2 * kPanel;
    return {record_at(args, packed, kv_head, b), keys, (keys + kStep - 1) / kStep,
            w.logits + half * kKeys * kEdge, w.p + half * kKeys / kStep * kTileBytes};
}

// -- products of tiles --

BONSAI_ALWAYS_INLINE void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// 2 x 2 tiles of 32-bit numbers, below each other and `next` floats apart, to and from tiles 0..3.
BONSAI_ALWAYS_INLINE void load(const float* from, int64_t next) {
    _tile_loadd(0, from, 64);
    _tile_loadd(1, from + next, 64);
    _tile_loadd(2, from + kEdge * kEdge, 64);
    _tile_loadd(3, from + next + kEdge * kEdge, 64);
}
BONSAI_ALWAYS_INLINE void store(float* to, int64_t next) {
    _tile_stored(0, to, 64);
    _tile_stored(1, to + next, 64);
    _tile_stored(2, to + kEdge * kEdge, 64);
    _tile_stored(3, to + next + kEdge * kEdge, 64);
}

// Tiles 0..3 += two rows of `count` tiles of a, `next_a` bytes apart, times two columns of b.
template <class Between>
BONSAI_ALWAYS_INLINE void multiply(const Bytes* a, int64_t next_a, const Bytes* b, int64_t next_b,
                                   int64_t count, const Between& between) {
    for (int64_t i = 0; i < count; ++i, a += kTileBytes, b += kTileBytes) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + next_b, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + next_a, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        between();
    }
}

// Logits of a step's keys and two tiles of queries.
template <class Between>
BONSAI_ALWAYS_INLINE void multiply_keys(const Workspace& w, int64_t panel, int64_t tile,
                                        const Block& block, int64_t step, const Between& between) {
    const int64_t row = w.depth / kStep * kTileBytes;
    clear();
    multiply(block.record.k + 2 * step * row, row, w.q + (panel * kPanel + tile) * row, row,
             w.depth / kStep, between);
    store(block.logits + (tile * kKeys + step * kStep) * kEdge, kKeys * kEdge);
}

// out += v^T p for dimensions [32 d, 32 d + 32) and two tiles of queries.
template <class Between>
BONSAI_ALWAYS_INLINE void multiply_values(const Workspace& w, int64_t panel, int64_t tile,
                                          const Block& block, int64_t d, bool first,
                                          const Between& between) {
    constexpr int64_t kRow = kKeys / kStep * kTileBytes;
    const int64_t next = w.depth * kEdge;
    float* out = w.out + (panel * kPanel + tile) * next + d * kStep * kEdge;
    first ? clear() : load(out, next);
    multiply(block.record.v + 2 * d * kRow, kRow, block.p + tile * kRow, kRow, block.steps,
             between);
    store(out, next);
}

// -- all of it --

// The weights of a step's keys, between them logits of the block `after` and values of the block
// `before`, where there are such.
void weigh_step(const Workspace& w, int64_t panel, const Block& now, int64_t step,
                const Block* after, const Block* before, bool first) {
    const int64_t depth = w.depth / kStep;
    const auto weigher = [&](int64_t tile, int64_t products) {
        return Weigher(w, panel * kPanel + tile, now.logits + (tile * kKeys + step * kStep) * kEdge,
                       now.p + (tile * kKeys / kStep + step) * kTileBytes, products);
    };
    for (int64_t i = 0; i < kPanel / 2; ++i) {
        Weigher weights = weigher(i, depth);
        if (after != nullptr && step < after->steps)
            multiply_keys(w, panel, 2 * i, *after, step, [&] { weights.next(); });
        weights.finish();
    }
    const int64_t begin = depth * step / now.steps, end = depth * (step + 1) / now.steps;
    for (int64_t i = 0; i < kPanel / 2; ++i) {
        Weigher weights = weigher(kPanel / 2 + i, (end - begin) * kKeys / kStep);
        if (before != nullptr)
            for (int64_t d = begin; d < end; ++d)
                multiply_values(w, panel, 2 * i, *before, d, first, [&] { weights.next(); });
        weights.finish();
    }
}

// Maxima of a block whose logits are there; moved[t]: those of tile t of the panel have moved.
void raise_maxima(const Workspace& w, int64_t panel, const Block& block, bool (&moved)[kPanel]) {
    __m512 poison = _mm512_setzero_ps();
    for (int64_t step = 0; step < block.steps; ++step)
        poison = _mm512_add_ps(poison, _mm512_load_ps(block.record.poison + step * kEdge));
    for (int64_t t = 0; t < kPanel; ++t) {
        float* logits = block.logits + t * kKeys * kEdge;
        for (int64_t j = block.keys; j < block.steps * kStep; ++j) // no keys: no weights
            _mm512_store_ps(logits + j * kEdge, _mm512_set1_ps(-INFINITY));
        moved[t] = raise_maximum(w, panel * kPanel + t, logits, block.keys, poison);
    }
}

// Key blocks [blocks.begin, blocks.end) for 32 queries.
void attend(const AttentionArgs& args, const Workspace& w, float* packed, int64_t kv_head,
            int64_t panel, Range blocks) {
    const auto nothing = [] {};
    Block before = {}, now = block_at(args, w, packed, kv_head, blocks.begin), after = {};
    for (int64_t step = 0; step < now.steps; ++step)
        for (int64_t tile = 0; tile < kPanel; tile += 2)
            multiply_keys(w, panel, tile, now, step, nothing);
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
        const bool more = b + 1 < blocks.end;
        bool moved[kPanel];
        finish_stores();
        raise_maxima(w, panel, now, moved);
        if (more) after = block_at(args, w, packed, kv_head, b + 1);
        for (int64_t step = 0; step < now.steps; ++step)
            weigh_step(w, panel, now, step, more ? &after : nullptr,
                       b > blocks.begin ? &before : nullptr, b == 1);
        finish_stores();
        for (int64_t t = 0; t < kPanel; ++t)
            if (moved[t] && b > 0) rescale(w, panel * kPanel + t);
        before = now;
        now = after;
    }
    finish_stores();
    for (int64_t d = 0; d < w.depth / kStep; ++d)
        for (int64_t tile = 0; tile < kPanel; tile += 2)
            multiply_values(w, panel, tile, before, d, blocks.end == 1, nothing);
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
                attend(args, w, const_cast<float*>(packed), kv_head, panel,
                       {group, at_most(group + kBlocks, blocks)});
        store_rows(args, w, column, begin, n);
    }
    return true;
}

} // namespace
} // namespace bonsai::cpu::amx

void bonsai::cpu::overlay_amx_attention_fast(KernelTable& table) {
    table.attention_packed_floats = amx::packed_floats;
    table.attention_pack = amx::pack;
    table.attention_pack_rows = amx::kStep;
    table.attention_fast = amx::attention_fast;
    table.attention_fast_piece_rows = amx::kQueries;
}
#endif
