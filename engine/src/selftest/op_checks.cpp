// SPDX-License-Identifier: Apache-2.0
// One check for each operation and variant that the pipeline uses. Sizes are small, but larger than
// one tile, with a remainder in every direction.
#include <cmath>

#include "selftest/op_bench.h"

namespace bonsai {

namespace {

constexpr float kEps = 1e-6f;

DType dtype_at(int index) {
    return static_cast<DType>(index);
}

std::string named(const char* op, DType dtype, const char* variant = "") {
    return std::string(op) + " " + dtype_info(dtype).name + variant;
}

// y, added to what stands there, gated where a gate is given.
Numbers added(const Floats& before, const Numbers& y, const Floats& gate) {
    Numbers out = y;
    for (int64_t r = 0; r < y.rows; ++r)
        for (int64_t c = 0; c < y.cols; ++c)
            out.at(r, c) = static_cast<double>(before.at(r, c)) +
                           (gate.rows > 0 ? static_cast<double>(gate.at(0, c)) : 1) * y.at(r, c);
    return out;
}

// Three projections of one input: stored with a bias, added, and added with a gate. One row, as in
// the modulations, takes other kernels than many.
void check_linear(Backend& backend, DType dtype, bool fast, int64_t rows,
                  std::vector<CheckResult>* out) {
    OpBench bench(backend, out);
    constexpr int64_t kIn = 384, kOut[3] = {72, 40, 24};
    LinearArgs args;
    const Floats x = bench.representable(rows, kIn);
    args.x = bench.put(x);
    args.count = 3;
    std::vector<OpBench::Expected> results;
    for (int i = 0; i < 3; ++i) {
        Projection& p = args.projections[i];
        Floats weight, bias, gate;
        p.weight = bench.weight(dtype, kOut[i], kIn, &weight);
        if (i == 0) bias = bench.uniform(1, kOut[i]);
        if (i == 2) gate = bench.uniform(1, kOut[i], 1, 0.5f);
        if (i == 0) p.bias = bench.put(bias);
        if (i == 2) p.gate = bench.put(gate);
        p.accumulate = i > 0;
        const Floats before = bench.uniform(rows, kOut[i]);
        p.out = i > 0 ? bench.put(before) : bench.room(rows, kOut[i]);
        const Numbers y = formula::linear(x, weight, bias);
        results.push_back({p.out, i > 0 ? added(before, y, gate) : y});
    }
    const std::string variant =
        std::string(fast ? " fast" : " exact") + (rows == 1 ? ", one row" : "");
    bench.run(
        named("linear", dtype, variant.c_str()), [&](Backend& b) { return b.linear(args); },
        results);
}

void check_norms(Backend& backend, std::vector<CheckResult>* out) {
    constexpr int64_t kRows = 21, kCols = 200;
    {
        OpBench bench(backend, out);
        const Floats x = bench.uniform(kRows, kCols, 0.25f, 3), gain = bench.uniform(1, kCols);
        const RmsNormArgs args{bench.put(x), bench.put(gain), bench.room(kRows, kCols), kEps};
        bench.run("rms_norm", [&](Backend& b) { return b.rms_norm(args); },
                  {{args.out, formula::rms_norm(x, gain, kEps)}});
    }
    {
        OpBench bench(backend, out);
        const Floats x = bench.uniform(kRows, kCols, 0.25f, 3), scale = bench.uniform(1, kCols),
                     shift = bench.uniform(1, kCols);
        const LayerNormArgs args{bench.put(x), bench.put(scale), bench.put(shift),
                                 bench.room(kRows, kCols), kEps};
        bench.run("layer_norm", [&](Backend& b) { return b.layer_norm(args); },
                  {{args.out, formula::layer_norm(x, scale, shift, kEps)}});
    }
    OpBench bench(backend, out);
    const Floats x = bench.uniform(77, 48, 0.25f, 3), gain = bench.uniform(1, 48),
                 bias = bench.uniform(1, 48);
    const GroupNormArgs args{bench.put(x), bench.put(gain), bench.put(bias), bench.room(2, 48), 8,
                             kEps};
    bench.run("group_norm", [&](Backend& b) { return b.group_norm(args); },
              {{args.affine, formula::group_norm(x, gain, bias, 8, kEps)}});
}

void check_rope(Backend& backend, RopePairs pairs, const char* name,
                std::vector<CheckResult>* out) {
    OpBench bench(backend, out);
    constexpr int64_t kRows = 21, kHeads = 3, kHead = 64;
    const Floats x = bench.uniform(kRows, kHeads * kHead, 0.25f, 3),
                 gain = bench.uniform(1, kHead, 1, 0.25f),
                 angles = bench.uniform(kRows, kHead / 2, 0, 3.14f);
    Floats cos = angles, sin = angles;
    for (float& value : cos.values)
        value = std::cos(value);
    for (float& value : sin.values)
        value = std::sin(value);
    HeadNormRopeArgs args;
    args.x = bench.put(x), args.gain = bench.put(gain);
    args.cos = bench.put(cos), args.sin = bench.put(sin);
    args.head_dim = kHead, args.pairs = pairs, args.eps = kEps;
    bench.run(name, [&](Backend& b) { return b.head_norm_rope(args); },
              {{args.x, formula::head_norm_rope(x, gain, cos, sin, pairs, kEps)}});
}

// Fast attention on AMX has bf16 factors.
double attention_allowed(Backend& backend, Precision precision) {
    const bool bf16 = precision == Precision::kFast && backend.device().features == "amx";
    return bf16 ? 10 * OpBench::kAllowed : OpBench::kAllowed;
}

void check_attention(Backend& backend, const char* name, int64_t queries, int64_t keys, int heads,
                     int kv_heads, int head_dim, bool causal, double allowed,
                     std::vector<CheckResult>* out) {
    OpBench bench(backend, out);
    const Floats q = bench.uniform(queries, heads * head_dim, 0, 2),
                 k = bench.uniform(keys, kv_heads * head_dim, 0, 2),
                 v = bench.uniform(keys, kv_heads * head_dim);
    AttentionArgs args;
    args.q = bench.put(q), args.k = bench.put(k), args.v = bench.put(v);
    args.out = bench.room(queries, heads * head_dim);
    args.heads = heads, args.kv_heads = kv_heads, args.head_dim = head_dim, args.causal = causal;
    args.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    const formula::AttentionShape shape{heads, kv_heads, head_dim, args.scale, causal};
    bench.run(
        name, [&](Backend& b) { return b.attention(args); },
        {{args.out, formula::attention(q, k, v, shape)}}, allowed);
}

void check_pointwise(Backend& backend, std::vector<CheckResult>* out) {
    constexpr int64_t kRows = 21, kCols = 200;
    OpBench bench(backend, out);
    const Floats x = bench.uniform(kRows, kCols, 0, 12), up = bench.uniform(kRows, kCols),
                 affine = bench.uniform(2, kCols);
    Numbers silu(kRows, kCols), swiglu(kRows, kCols), scaled(kRows, kCols);
    for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < kCols; ++c) {
            const double value = x.at(r, c);
            silu.at(r, c) = formula::silu(value);
            swiglu.at(r, c) = formula::silu(value) * up.at(r, c);
            scaled.at(r, c) = affine.at(0, c) * value + affine.at(1, c);
        }
    }
    const Tensor input = bench.put(x);
    const SiluArgs silu_args{input, bench.room(kRows, kCols)};
    const SwigluArgs swiglu_args{input, bench.put(up), bench.room(kRows, kCols)};
    const AffineArgs affine_args{input, bench.put(affine), bench.room(kRows, kCols)};
    bench.run("silu", [&](Backend& b) { return b.silu(silu_args); }, {{silu_args.out, silu}});
    bench.run("swiglu", [&](Backend& b) { return b.swiglu(swiglu_args); },
              {{swiglu_args.out, swiglu}});
    bench.run("affine", [&](Backend& b) { return b.affine(affine_args); },
              {{affine_args.out, scaled}});
}

void check_embed(Backend& backend, DType dtype, std::vector<CheckResult>* out) {
    OpBench bench(backend, out);
    const int32_t ids[] = {0, 18, 7, 7, 1};
    Floats table;
    const Tensor weight = bench.weight(dtype, 19, 256, &table);
    const EmbedRowsArgs args{weight, ids, bench.room(5, 256)};
    Numbers expected(5, 256);
    for (int64_t r = 0; r < 5; ++r)
        for (int64_t c = 0; c < 256; ++c)
            expected.at(r, c) = table.at(ids[r], c);
    bench.run(named("embed_rows", dtype), [&](Backend& b) { return b.embed_rows(args); },
              {{args.out, expected}});
}

// With `folded` the input passes a norm and SiLU and the result is added to what is there, as in a
// residual block.
void check_conv(Backend& backend, DType dtype, const char* variant, int kernel, bool upsample,
                bool folded, std::vector<CheckResult>* out) {
    OpBench bench(backend, out);
    constexpr int64_t kHeight = 7, kWidth = 13, kIn = 24, kOut = 20;
    const int64_t pixels = kHeight * kWidth * (upsample ? 4 : 1);
    Floats weight, affine;
    const Floats x = bench.uniform(kHeight * kWidth, kIn), bias = bench.uniform(1, kOut),
                 before = bench.uniform(pixels, kOut);
    Conv2dArgs args;
    args.x = bench.put(x), args.bias = bench.put(bias);
    args.weight = bench.weight(dtype, kOut, kernel * kernel * kIn, &weight);
    if (folded) {
        affine = bench.uniform(2, kIn);
        args.affine = bench.put(affine);
        args.add = bench.put(before);
    }
    args.out = bench.room(pixels, kOut);
    args.height = kHeight, args.width = kWidth, args.kernel = kernel, args.upsample = upsample;
    const Numbers y = formula::conv2d(x, weight, bias, affine, {kHeight, kWidth, kernel, upsample});
    bench.run(named("conv2d", dtype, variant), [&](Backend& b) { return b.conv2d(args); },
              {{args.out, folded ? added(before, y, Floats()) : y}});
}

} // namespace

void check_ops(Backend& backend, Precision precision, std::vector<CheckResult>* out) {
    const bool fast = precision == Precision::kFast;
    for (int i = 0; i < kDTypeCount; ++i)
        for (const int64_t rows : {67, 1})
            check_linear(backend, dtype_at(i), fast, rows, out);
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        check_conv(backend, dtype, fast ? " 1x1, fast" : " 1x1", 1, false, false, out);
        check_conv(backend, dtype, fast ? " 3x3, residual, fast" : " 3x3, residual", 3, false, true,
                   out);
        check_conv(backend, dtype, fast ? " 3x3, doubling, fast" : " 3x3, doubling", 3, true, false,
                   out);
    }
    const double allowed = attention_allowed(backend, precision);
    check_attention(backend, fast ? "attention, all keys, fast" : "attention, all keys", 67, 67, 2,
                    2, 64, false, allowed, out);
    check_attention(backend, fast ? "attention, one wide head, fast" : "attention, one wide head",
                    67, 67, 1, 1, 128, false, allowed, out);
    if (fast) return; // the rest does not depend on it
    check_attention(backend, "attention, causal, shared keys", 67, 41, 4, 2, 32, true, allowed,
                    out);
    check_norms(backend, out);
    check_rope(backend, RopePairs::kHalves, "head_norm_rope, halves", out);
    check_rope(backend, RopePairs::kNeighbours, "head_norm_rope, neighbours", out);
    check_pointwise(backend, out);
    for (int i = 0; i < kDTypeCount; ++i)
        check_embed(backend, dtype_at(i), out);
}

} // namespace bonsai
