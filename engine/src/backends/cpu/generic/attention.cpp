// SPDX-License-Identifier: Apache-2.0
// attention: out = softmax(scale * q k^T) v, one head, some query rows. q, k, v, out f32, head h at
// column h * head_dim. Reference: one query at a time; its logits (8 bytes a key) in scratch,
// maximum subtracted, double sums.
#include <cmath>

#include "backends/cpu/table.h"

namespace bonsai::cpu {

static void attend(const AttentionArgs& args, const float* q, int64_t kv_column, int64_t keys,
                   double* logits, double* sums, float* out) {
    double maximum = -INFINITY;
    for (int64_t j = 0; j < keys; ++j) {
        const float* k = args.k.row(j) + kv_column;
        double dot = 0;
        for (int d = 0; d < args.head_dim; ++d)
            dot += static_cast<double>(q[d]) * k[d];
        logits[j] = dot * args.scale;
        maximum = std::fmax(maximum, logits[j]);
    }
    double total = 0;
    for (int d = 0; d < args.head_dim; ++d)
        sums[d] = 0;
    for (int64_t j = 0; j < keys; ++j) {
        const float* v = args.v.row(j) + kv_column;
        const double p = std::exp(logits[j] - maximum);
        total += p;
        for (int d = 0; d < args.head_dim; ++d)
            sums[d] += p * v[d];
    }
    for (int d = 0; d < args.head_dim; ++d)
        out[d] = static_cast<float>(sums[d] / total);
}

static bool attention(const AttentionArgs& args, int head, Range query_rows, Scratch& scratch) {
    const int64_t all_keys = args.k.rows;
    auto* logits = static_cast<double*>(scratch.get((all_keys + args.head_dim) * sizeof(double)));
    if (logits == nullptr) return false;
    const int64_t column = static_cast<int64_t>(head) * args.head_dim;
    const int64_t kv_column =
        static_cast<int64_t>(head / (args.heads / args.kv_heads)) * args.head_dim;
    for (int64_t i = query_rows.begin; i < query_rows.end; ++i) {
        const int64_t keys = args.causal && i + 1 < all_keys ? i + 1 : all_keys;
        attend(args, args.q.row(i) + column, kv_column, keys, logits, logits + all_keys,
               args.out.row(i) + column);
    }
    return true;
}

void overlay_generic_attention(KernelTable& table) {
    table.attention = attention;
    table.attention_piece_rows = 32;
}

} // namespace bonsai::cpu
