// SPDX-License-Identifier: Apache-2.0
// Shape and type rules of every op, once for all backends: kernels rely on them and check nothing.
#include "ops/ops.h"

#include <cmath>
#include <cstdint>

namespace bonsai {

namespace {

// An expected size and where it comes from, for the message: "expected 2560 (= x cols)".
struct Size {
    int64_t value;
    const char* origin;
};

long long ll(int64_t value) {
    return static_cast<long long>(value);
}

Status bad(const char* op, const char* name, const std::string& what) {
    return fail(ErrorCode::kArgument, "%s: %s %s", op, name, what.c_str());
}

// Present, positive sizes, rows that do not overlap, whole blocks, an address fit for the element
// type, and a size in bytes that 64 bits can hold.
Status check_storage(const char* op, const char* name, const Tensor& t) {
    if (t.empty()) return bad(op, name, "is absent (null data)");
    if (t.rows <= 0 || t.cols <= 0)
        return bad(op, name,
                   format("is [%lld, %lld], expected sizes of at least 1", ll(t.rows), ll(t.cols)));
    if (t.stride < t.cols)
        return bad(
            op, name,
            format("stride %lld, expected at least %lld (= its cols)", ll(t.stride), ll(t.cols)));
    const DTypeInfo& info = dtype_info(t.dtype);
    if (t.cols % info.block != 0 || t.stride % info.block != 0)
        return bad(op, name,
                   format("cols %lld, stride %lld, expected multiples of %u (block of %s)",
                          ll(t.cols), ll(t.stride), info.block, info.name));
    if (t.stride / info.block > INT64_MAX / info.bytes / t.rows)
        return bad(op, name,
                   format("is [%lld, %lld] with stride %lld: too large to address", ll(t.rows),
                          ll(t.cols), ll(t.stride)));
    const size_t alignment = t.dtype == DType::kF32 ? 4 : 2;
    if (reinterpret_cast<uintptr_t>(t.data) % alignment != 0)
        return bad(op, name,
                   format("data is not aligned to %d bytes, the size of a %s",
                          static_cast<int>(alignment), t.dtype == DType::kF32 ? "float" : "half"));
    return {};
}

Status check_size(const char* op, const char* name, const char* axis, int64_t found,
                  Size expected) {
    if (found == expected.value) return {};
    return bad(op, name,
               format("%s %lld, expected %lld (= %s)", axis, ll(found), ll(expected.value),
                      expected.origin));
}

// F32, or `other`.
Status check_type(const char* op, const char* name, const Tensor& t, DType other = DType::kF32) {
    BONSAI_TRY(check_storage(op, name, t));
    if (t.dtype != DType::kF32 && t.dtype != other)
        return bad(op, name,
                   format("is %s, expected F32%s%s", dtype_info(t.dtype).name,
                          other == DType::kF32 ? "" : " or ",
                          other == DType::kF32 ? "" : dtype_info(other).name));
    return {};
}
Status check_type(const char* op, const char* name, const Tensor& t, DType other, Size rows,
                  Size cols) {
    BONSAI_TRY(check_type(op, name, t, other));
    BONSAI_TRY(check_size(op, name, "rows", t.rows, rows));
    return check_size(op, name, "cols", t.cols, cols);
}
Status check_f32(const char* op, const char* name, const Tensor& t) {
    return check_type(op, name, t);
}
Status check_f32(const char* op, const char* name, const Tensor& t, Size rows, Size cols) {
    return check_type(op, name, t, DType::kF32, rows, cols);
}

// What only linear layers read: floats, or codes with scales as the backend wants them.
Status check_product(const char* op, const char* name, const Tensor& t,
                     const ActivationTypes& types) {
    BONSAI_TRY(check_type(op, name, t, types.product));
    if (t.dtype != DType::kI8) return {};
    if (t.scale_group < kGroup || t.scale_group % kGroup != 0 ||
        types.low_bit_group % t.scale_group != 0)
        return bad(op, name,
                   format("has a scale for %d inputs, expected for %d%s", t.scale_group, kGroup,
                          types.low_bit_group == kGroup
                              ? ""
                              : format(", %d or %d", 2 * kGroup, kWideGroup).c_str()));
    if (!t.scales)
        return bad(
            op, name,
            format("has no scales; a slice of columns begins at a multiple of %d", t.scale_group));
    if (reinterpret_cast<uintptr_t>(t.scales) % 16 != 0)
        return bad(op, name,
                   "has scales that begin at no multiple of 16 bytes; a slice of rows "
                   "begins at a multiple of 4");
    if (t.scale_stride < scale_stride_of(t.rows))
        return bad(op, name,
                   format("has scales %lld apart, expected at least %lld", ll(t.scale_stride),
                          ll(scale_stride_of(t.rows))));
    return {};
}
Status check_product(const char* op, const char* name, const Tensor& t,
                     const ActivationTypes& types, Size rows, Size cols) {
    BONSAI_TRY(check_product(op, name, t, types));
    BONSAI_TRY(check_size(op, name, "rows", t.rows, rows));
    return check_size(op, name, "cols", t.cols, cols);
}

Status check_alike(const char* op, const char* name, const Tensor& t, const char* other_name,
                   const Tensor& other) {
    if (t.dtype == other.dtype) return {};
    return bad(op, name,
               format("is %s, expected %s as %s", dtype_info(t.dtype).name,
                      dtype_info(other.dtype).name, other_name));
}

// One row of parameters: a gain, a bias, a shift.
Status check_vector(const char* op, const char* name, const Tensor& t, Size cols) {
    return check_f32(op, name, t, {1, "one row"}, cols);
}

Status check_also(const char* op, const HeadNormRopeArgs& args, const ActivationTypes& types) {
    BONSAI_TRY(check_type(op, "also", args.also, types.heads));
    BONSAI_TRY(check_alike(op, "also", args.also, "x", args.x));
    if (args.also.cols % args.head_dim != 0)
        return bad(op, "also",
                   format("cols %lld, expected a multiple of %d (= head_dim)", ll(args.also.cols),
                          args.head_dim));
    if (args.also.rows > args.x.rows)
        return bad(op, "also",
                   format("rows %lld, expected at most %lld (= x rows)", ll(args.also.rows),
                          ll(args.x.rows)));
    BONSAI_TRY(check_vector(op, "also_gain", args.also_gain, {args.head_dim, "head_dim"}));
    if (args.also.data == args.x.data)
        return bad(op, "also", "shares memory with x, expected another matrix");
    return {};
}

// Two operands that a kernel may not read and write at once.
Status check_distinct(const char* op, const char* name, const Tensor& t, const char* other_name,
                      const Tensor& other) {
    if (t.data == other.data)
        return bad(op, name, format("shares memory with %s, expected another buffer", other_name));
    return {};
}

Status check_eps(const char* op, float eps) {
    if (std::isfinite(eps) && eps > 0) return {};
    return fail(ErrorCode::kArgument, "%s: eps %g, expected a finite number above 0", op,
                static_cast<double>(eps));
}

Status check_positive(const char* op, const char* name, int64_t value) {
    if (value > 0) return {};
    return fail(ErrorCode::kArgument, "%s: %s %lld, expected at least 1", op, name, ll(value));
}

Status check_multiple(const char* op, const char* name, int64_t value, int64_t of,
                      const char* of_name) {
    if (value % of == 0) return {};
    return fail(ErrorCode::kArgument, "%s: %s %lld, expected a multiple of %lld (= %s)", op, name,
                ll(value), ll(of), of_name);
}

// Of a projection that is activated.
Status check_activated(const LinearArgs& args, const Projection& p, const ActivationTypes& types) {
    const char* op = "linear";
    if (!types.activate || args.x.dtype != types.product)
        return bad(op, "activate",
                   format("is asked for x of %s, expected a backend that offers it and %s",
                          dtype_info(args.x.dtype).name, dtype_info(types.product).name));
    if (p.accumulate || !p.bias.empty() || !p.gate.empty())
        return bad(op, "activate", "excludes accumulate, bias and gate");
    BONSAI_TRY(check_multiple(op, "weight rows", p.weight.rows, 2, "gate and up"));
    BONSAI_TRY(check_product(op, "out", p.out, types, {args.x.rows, "x rows"},
                             {p.weight.rows / 2, "half of weight rows"}));
    return check_distinct(op, "out", p.out, "x", args.x);
}

Status check_projection(const LinearArgs& args, int index, const ActivationTypes& types) {
    const char* op = "linear";
    const Projection& p = args.projections[index];
    BONSAI_TRY(check_storage(op, "weight", p.weight));
    if (args.x.dtype == DType::kI8 && !meets_codes(p.weight.dtype))
        return bad(op, "weight",
                   format("is %s, which x of I8 cannot meet", dtype_info(p.weight.dtype).name));
    if (args.x.dtype == DType::kI8 && args.x.scale_group != kGroup && !is_low_bit(p.weight.dtype))
        return bad(op, "weight",
                   format("is %s, expected a low-bit type as x has a scale for %d inputs",
                          dtype_info(p.weight.dtype).name, args.x.scale_group));
    BONSAI_TRY(check_size(op, "weight", "cols", p.weight.cols, {args.x.cols, "x cols"}));
    if (p.activate) return check_activated(args, p, types);
    const Size n = {p.weight.rows, "weight rows"};
    if (!p.bias.empty()) BONSAI_TRY(check_vector(op, "bias", p.bias, n));
    const DType half = types.heads == DType::kF32 ? types.hidden : types.heads;
    BONSAI_TRY(check_type(op, "out", p.out, p.accumulate ? DType::kF32 : half,
                          {args.x.rows, "x rows"}, n));
    BONSAI_TRY(check_distinct(op, "out", p.out, "x", args.x));
    if (p.gate.empty()) return {};
    if (!p.accumulate)
        return bad(op, "gate", "is given without accumulate; set accumulate or leave it empty");
    return check_vector(op, "gate", p.gate, n);
}

} // namespace

Status check(const LinearArgs& args, const ActivationTypes& types) {
    const char* op = "linear";
    if (args.count < 1 || args.count > 3)
        return fail(ErrorCode::kArgument, "%s: count %d, expected 1 to 3 projections", op,
                    args.count);
    if (args.exact)
        BONSAI_TRY(check_f32(op, "x", args.x));
    else
        BONSAI_TRY(check_product(op, "x", args.x, types));
    for (int i = 0; i < args.count; ++i) {
        Status status = check_projection(args, i, types);
        if (!status.ok())
            return fail(status.code(), "%s (projection %d of %d)", status.message().c_str(), i + 1,
                        args.count);
    }
    return {};
}

Status check(const RmsNormArgs& args, const ActivationTypes&) {
    const char* op = "rms_norm";
    BONSAI_TRY(check_f32(op, "x", args.x));
    BONSAI_TRY(check_vector(op, "gain", args.gain, {args.x.cols, "x cols"}));
    BONSAI_TRY(check_f32(op, "out", args.out, {args.x.rows, "x rows"}, {args.x.cols, "x cols"}));
    return check_eps(op, args.eps);
}

Status check(const LayerNormArgs& args, const ActivationTypes& types) {
    const char* op = "layer_norm";
    BONSAI_TRY(check_f32(op, "x", args.x));
    BONSAI_TRY(check_vector(op, "scale", args.scale, {args.x.cols, "x cols"}));
    BONSAI_TRY(check_vector(op, "shift", args.shift, {args.x.cols, "x cols"}));
    BONSAI_TRY(check_product(op, "out", args.out, types, {args.x.rows, "x rows"},
                             {args.x.cols, "x cols"}));
    return check_eps(op, args.eps);
}

Status check(const HeadNormRopeArgs& args, const ActivationTypes& types) {
    const char* op = "head_norm_rope";
    BONSAI_TRY(check_positive(op, "head_dim", args.head_dim));
    BONSAI_TRY(check_multiple(op, "head_dim", args.head_dim, 2, "a pair"));
    BONSAI_TRY(check_type(op, "x", args.x, types.heads));
    BONSAI_TRY(check_multiple(op, "x cols", args.x.cols, args.head_dim, "head_dim"));
    BONSAI_TRY(check_vector(op, "gain", args.gain, {args.head_dim, "head_dim"}));
    if (!args.also.empty()) BONSAI_TRY(check_also(op, args, types));
    const Size rows = {args.x.rows, "x rows"};
    const Size half = {args.head_dim / 2, "head_dim / 2"};
    BONSAI_TRY(check_f32(op, "cos", args.cos, rows, half));
    BONSAI_TRY(check_f32(op, "sin", args.sin, rows, half));
    if (args.pairs != RopePairs::kHalves && args.pairs != RopePairs::kNeighbours)
        return fail(ErrorCode::kArgument, "%s: pairs %d, expected halves or neighbours", op,
                    static_cast<int>(args.pairs));
    return check_eps(op, args.eps);
}

Status check(const AttentionArgs& args, const ActivationTypes& types) {
    const char* op = "attention";
    BONSAI_TRY(check_positive(op, "heads", args.heads));
    BONSAI_TRY(check_positive(op, "kv_heads", args.kv_heads));
    BONSAI_TRY(check_multiple(op, "heads", args.heads, args.kv_heads, "kv_heads"));
    BONSAI_TRY(check_positive(op, "head_dim", args.head_dim));
    BONSAI_TRY(check_multiple(op, "head_dim", args.head_dim, 8, "a vector"));
    const Size q_cols = {int64_t{args.heads} * args.head_dim, "heads * head_dim"};
    const Size kv_cols = {int64_t{args.kv_heads} * args.head_dim, "kv_heads * head_dim"};
    BONSAI_TRY(check_type(op, "q", args.q, types.heads, {args.q.rows, "q rows"}, q_cols));
    BONSAI_TRY(check_type(op, "k", args.k, types.heads, {args.k.rows, "k rows"}, kv_cols));
    BONSAI_TRY(check_type(op, "v", args.v, types.heads, {args.k.rows, "k rows"}, kv_cols));
    BONSAI_TRY(check_product(op, "out", args.out, types, {args.q.rows, "q rows"}, q_cols));
    BONSAI_TRY(check_alike(op, "k", args.k, "q", args.q));
    BONSAI_TRY(check_alike(op, "v", args.v, "q", args.q));
    BONSAI_TRY(check_distinct(op, "out", args.out, "k", args.k));
    BONSAI_TRY(check_distinct(op, "out", args.out, "v", args.v));
    if (!std::isfinite(args.scale))
        return fail(ErrorCode::kArgument, "%s: scale %g, expected a finite number", op,
                    static_cast<double>(args.scale));
    return {};
}

Status check(const SwigluArgs& args, const ActivationTypes& types) {
    const char* op = "swiglu";
    const Size rows = {args.gate.rows, "gate rows"};
    const Size cols = {args.gate.cols, "gate cols"};
    BONSAI_TRY(check_type(op, "gate", args.gate, types.hidden));
    BONSAI_TRY(check_type(op, "up", args.up, types.hidden, rows, cols));
    BONSAI_TRY(check_alike(op, "up", args.up, "gate", args.gate));
    if (args.out.dtype != args.gate.dtype)
        BONSAI_TRY(check_distinct(op, "out", args.out, "gate", args.gate));
    return check_product(op, "out", args.out, types, rows, cols);
}

Status check(const SiluArgs& args, const ActivationTypes&) {
    const char* op = "silu";
    BONSAI_TRY(check_f32(op, "x", args.x));
    return check_f32(op, "out", args.out, {args.x.rows, "x rows"}, {args.x.cols, "x cols"});
}

Status check(const EmbedRowsArgs& args, const ActivationTypes&) {
    const char* op = "embed_rows";
    BONSAI_TRY(check_storage(op, "table", args.table));
    BONSAI_TRY(check_f32(op, "out", args.out));
    BONSAI_TRY(check_size(op, "out", "cols", args.out.cols, {args.table.cols, "table cols"}));
    if (args.ids == nullptr) return bad(op, "ids", "are absent (null pointer)");
    for (int64_t i = 0; i < args.out.rows; ++i) {
        if (args.ids[i] < 0 || args.ids[i] >= args.table.rows)
            return fail(ErrorCode::kArgument,
                        "%s: ids[%lld] is %d, expected 0 to %lld (table rows - 1)", op, ll(i),
                        static_cast<int>(args.ids[i]), ll(args.table.rows - 1));
    }
    return {};
}

Status check(const GroupNormArgs& args, const ActivationTypes&) {
    const char* op = "group_norm";
    const Size channels = {args.x.cols, "x cols"};
    BONSAI_TRY(check_f32(op, "x", args.x));
    BONSAI_TRY(check_positive(op, "groups", args.groups));
    BONSAI_TRY(check_multiple(op, "x cols", args.x.cols, args.groups, "groups"));
    BONSAI_TRY(check_vector(op, "gain", args.gain, channels));
    BONSAI_TRY(check_vector(op, "bias", args.bias, channels));
    BONSAI_TRY(check_f32(op, "affine", args.affine, {2, "multiplier and offset"}, channels));
    BONSAI_TRY(check_distinct(op, "affine", args.affine, "x", args.x));
    if (args.piece <= 0)
        return fail(ErrorCode::kArgument, "%s: piece is %lld, expected a positive number", op,
                    ll(args.piece));
    if (args.carry.empty() && !(args.first && args.last))
        return bad(op, "carry", "is absent, but x is a strip");
    if (!args.carry.empty()) {
        BONSAI_TRY(check_f32(op, "carry", args.carry, {6, "sums"}, {args.groups, "groups"}));
        if (!args.carry.contiguous()) return bad(op, "carry", "is a slice of columns");
        if (args.pixels < args.x.rows)
            return fail(ErrorCode::kArgument, "%s: pixels %lld, expected at least %lld (x rows)",
                        op, ll(args.pixels), ll(args.x.rows));
    }
    return check_eps(op, args.eps);
}

Status check(const AffineArgs& args, const ActivationTypes&) {
    const char* op = "affine";
    const Size channels = {args.x.cols, "x cols"};
    BONSAI_TRY(check_f32(op, "x", args.x));
    BONSAI_TRY(check_f32(op, "affine", args.affine, {2, "multiplier and offset"}, channels));
    return check_f32(op, "out", args.out, {args.x.rows, "x rows"}, channels);
}

Status check(const Conv2dArgs& args, const ActivationTypes&) {
    const char* op = "conv2d";
    BONSAI_TRY(check_positive(op, "height", args.height));
    BONSAI_TRY(check_positive(op, "width", args.width));
    if (args.height > INT32_MAX || args.width > INT32_MAX)
        return fail(ErrorCode::kArgument, "%s: image of %lld x %lld, expected sides below 2^31", op,
                    ll(args.width), ll(args.height));
    if (args.kernel != 1 && args.kernel != 3)
        return fail(ErrorCode::kArgument, "%s: kernel %d, expected 1 or 3", op, args.kernel);
    BONSAI_TRY(check_f32(op, "x", args.x));
    if (args.above < 0 || args.above > 1 || args.below < 0 || args.below > 1 ||
        args.height <= args.above + args.below)
        return fail(ErrorCode::kArgument,
                    "%s: %d rows above and %d below of %lld, expected at most one each and others",
                    op, args.above, args.below, ll(args.height));
    BONSAI_TRY(
        check_size(op, "x", "rows", args.x.rows, {args.height * args.width, "height * width"}));
    BONSAI_TRY(check_storage(op, "weight", args.weight));
    if (is_block_quantized(args.weight.dtype))
        return bad(op, "weight",
                   format("is %s, expected F32, F16 or BF16", dtype_info(args.weight.dtype).name));
    BONSAI_TRY(check_size(op, "weight", "cols", args.weight.cols,
                          {args.kernel * args.kernel * args.x.cols, "kernel * kernel * x cols"}));
    const Size out_channels = {args.weight.rows, "weight rows"};
    const Size out_pixels = {args.out_height() * args.width * args.zoom(),
                             args.upsample ? "4 * height * width" : "height * width"};
    if (!args.bias.empty()) BONSAI_TRY(check_vector(op, "bias", args.bias, out_channels));
    if (!args.affine.empty())
        BONSAI_TRY(check_f32(op, "affine", args.affine, {2, "multiplier and offset"},
                             {args.x.cols, "x cols"}));
    if (!args.add.empty()) BONSAI_TRY(check_f32(op, "add", args.add, out_pixels, out_channels));
    BONSAI_TRY(check_f32(op, "out", args.out, out_pixels, out_channels));
    return check_distinct(op, "out", args.out, "x", args.x);
}

} // namespace bonsai
