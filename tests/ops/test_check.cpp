// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <functional>

#include "ops/ops.h"
#include "test.h"

using namespace bonsai;

constexpr ErrorCode kBad = ErrorCode::kArgument;

// Checks look at sizes and addresses only: one buffer for each operand is enough, whatever the
// shape.
static float buffers[16][64];
static Tensor f32(int buffer, int64_t rows, int64_t cols) {
    return f32_matrix(buffers[buffer], rows, cols);
}
static Tensor weight(DType dtype, int64_t rows, int64_t cols) {
    return Tensor{dtype, rows, cols, cols, buffers[15]};
}

static LinearArgs linear() {
    LinearArgs a;
    a.x = f32(0, 10, 2560);
    a.count = 2;
    for (int i = 0; i < 2; ++i) {
        a.projections[i].weight = weight(i == 0 ? DType::kQ1_0 : DType::kF16, 384, 2560);
        a.projections[i].out = f32(1 + i, 10, 384);
    }
    a.projections[1].bias = f32(3, 1, 384);
    a.projections[1].accumulate = true;
    a.projections[1].gate = f32(4, 1, 384);
    return a;
}

template <typename Args, typename Change> static Status changed(Args args, Change change) {
    change(args);
    return check(args);
}

TEST(linear) {
    const LinearArgs good = linear();
    CHECK_OK(check(good));
    CHECK_FAILS(
        changed(good,
                [](LinearArgs& a) { a.projections[0].weight = weight(DType::kF32, 384, 3072); }),
        kBad, "linear: weight cols 3072, expected 2560 (= x cols)");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.count = 0; }), kBad,
                "count 0, expected 1 to 3");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.count = 4; }), kBad, "count 4");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.count = 3; }), kBad,
                "weight is absent (null data) (projection 3 of 3)");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.dtype = DType::kF16; }), kBad,
                "x is F16, expected F32");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[0].out.rows = 9; }), kBad,
                "out rows 9, expected 10 (= x rows)");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[0].out = f32(1, 10, 385); }), kBad,
                "out cols 385, expected 384 (= weight rows)");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[1].bias = f32(3, 1, 383); }), kBad,
                "bias cols 383");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[1].bias = f32(3, 2, 384); }), kBad,
                "bias rows 2, expected 1");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[1].accumulate = false; }), kBad,
                "gate is given without accumulate");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[1].gate = f32(4, 1, 1); }), kBad,
                "gate cols 1");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[0].out.data = a.x.data; }), kBad,
                "out shares memory with x");
}

// What every tensor has to satisfy.
TEST(storage) {
    const LinearArgs good = linear();
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.data = nullptr; }), kBad,
                "linear: x is absent");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.rows = 0; }), kBad,
                "x is [0, 2560], expected sizes of at least 1");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.rows = -1; }), kBad, "x is [-1, 2560]");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.cols = 0; }), kBad, "x is [10, 0]");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.stride = 2559; }), kBad,
                "x stride 2559, expected at least 2560");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.x.rows = INT64_MAX / 100; }), kBad,
                "too large");
    CHECK_FAILS(changed(good, [](LinearArgs& a) { a.projections[0].weight.stride += 64; }), kBad,
                "weight cols 2560, stride 2624, expected multiples of 128 (block of Q1_0)");
    CHECK_FAILS(changed(good,
                        [](LinearArgs& a) {
                            a.projections[0].weight.cols = a.projections[0].weight.stride = 2500;
                        }),
                kBad, "multiples of 128");
    CHECK_FAILS(
        changed(good, [](LinearArgs& a) { a.x.data = reinterpret_cast<uint8_t*>(a.x.data) + 2; }),
        kBad, "x data is not aligned to 4 bytes");
    CHECK_FAILS(changed(good,
                        [](LinearArgs& a) {
                            a.projections[1].weight.data =
                                reinterpret_cast<uint8_t*>(a.projections[1].weight.data) + 1;
                        }),
                kBad, "weight data is not aligned to 2 bytes");
}

TEST(norms) {
    const RmsNormArgs rms = {f32(0, 4, 100), f32(1, 1, 100), f32(0, 4, 100), 1e-6f};
    CHECK_OK(check(rms));
    CHECK_FAILS(changed(rms, [](RmsNormArgs& a) { a.gain = f32(1, 1, 99); }), kBad,
                "rms_norm: gain cols 99, expected 100");
    CHECK_FAILS(changed(rms, [](RmsNormArgs& a) { a.out = f32(2, 5, 100); }), kBad,
                "rms_norm: out rows 5, expected 4");
    for (float eps : {0.0f, -1.0f, NAN, INFINITY})
        CHECK_FAILS(changed(rms, [&](RmsNormArgs& a) { a.eps = eps; }), kBad,
                    "expected a finite number above 0");

    const LayerNormArgs layer = {f32(0, 4, 100), f32(1, 1, 100), f32(2, 1, 100), f32(3, 4, 100),
                                 1e-6f};
    CHECK_OK(check(layer));
    CHECK_FAILS(changed(layer, [](LayerNormArgs& a) { a.scale = Tensor(); }), kBad,
                "layer_norm: scale is absent");
    CHECK_FAILS(changed(layer, [](LayerNormArgs& a) { a.shift = f32(2, 4, 100); }), kBad,
                "shift rows 4, expected 1");
    CHECK_FAILS(changed(layer, [](LayerNormArgs& a) { a.out = f32(3, 4, 50); }), kBad,
                "out cols 50");
    CHECK_FAILS(changed(layer, [](LayerNormArgs& a) { a.eps = 0; }), kBad, "eps 0");

    GroupNormArgs group;
    group.x = f32(0, 50, 96), group.gain = f32(1, 1, 96), group.bias = f32(2, 1, 96),
    group.affine = f32(3, 2, 96);
    group.groups = 32, group.eps = 1e-6f;
    CHECK_OK(check(group));
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.groups = 0; }), kBad,
                "group_norm: groups 0, expected at least 1");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.groups = 36; }), kBad,
                "x cols 96, expected a multiple of 36 (= groups)");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.affine.rows = 1; }), kBad,
                "affine rows 1, expected 2");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.bias.cols = 95; }), kBad, "bias cols 95");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.gain.cols = 95; }), kBad, "gain cols 95");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.affine.data = a.x.data; }), kBad,
                "affine shares memory with x");
    CHECK_FAILS(changed(group, [](GroupNormArgs& a) { a.eps = 0; }), kBad, "eps 0");
}

TEST(head_norm_rope) {
    HeadNormRopeArgs good;
    good.x = f32(0, 7, 3 * 64), good.gain = f32(1, 1, 64), good.cos = f32(2, 7, 32),
    good.sin = f32(3, 7, 32);
    good.head_dim = 64, good.eps = 1e-6f;
    CHECK_OK(check(good));
    using Args = HeadNormRopeArgs;
    CHECK_FAILS(changed(good, [](Args& a) { a.head_dim = 0; }), kBad, "head_norm_rope: head_dim 0");
    CHECK_FAILS(changed(good, [](Args& a) { a.head_dim = 63; }), kBad,
                "head_dim 63, expected a multiple of 2");
    CHECK_FAILS(changed(good, [](Args& a) { a.head_dim = 128; }), kBad,
                "x cols 192, expected a multiple of 128 (= head_dim)");
    CHECK_FAILS(changed(good, [](Args& a) { a.gain.cols = 32; }), kBad,
                "gain cols 32, expected 64");
    CHECK_FAILS(changed(good, [](Args& a) { a.cos.rows = 6; }), kBad, "cos rows 6, expected 7");
    CHECK_FAILS(changed(good, [](Args& a) { a.sin.cols = 16; }), kBad,
                "sin cols 16, expected 32 (= head_dim / 2)");
    CHECK_FAILS(changed(good, [](Args& a) { a.pairs = static_cast<RopePairs>(2); }), kBad,
                "pairs 2");
    CHECK_FAILS(changed(good, [](Args& a) { a.eps = NAN; }), kBad, "eps nan");
    good.also = f32(5, 6, 64), good.also_gain = f32(6, 1, 64);
    CHECK_OK(check(good));
    CHECK_FAILS(changed(good, [](Args& a) { a.also.rows = 8; }), kBad,
                "also rows 8, expected at most 7");
    CHECK_FAILS(changed(good, [](Args& a) { a.also.cols = a.also.stride = 96; }), kBad,
                "also cols 96, expected a multiple of 64");
    CHECK_FAILS(changed(good, [](Args& a) { a.also_gain = Tensor(); }), kBad,
                "also_gain is absent");
    CHECK_FAILS(changed(good, [](Args& a) { a.also.data = a.x.data; }), kBad, "shares memory");
}

TEST(attention) {
    AttentionArgs good;
    good.q = f32(0, 9, 4 * 128), good.k = f32(1, 12, 2 * 128), good.v = f32(2, 12, 2 * 128),
    good.out = f32(3, 9, 4 * 128);
    good.heads = 4, good.kv_heads = 2, good.head_dim = 128, good.scale = 0.1f;
    CHECK_OK(check(good));
    using Args = AttentionArgs;
    CHECK_FAILS(changed(good, [](Args& a) { a.heads = 0; }), kBad, "attention: heads 0");
    CHECK_FAILS(changed(good, [](Args& a) { a.kv_heads = -2; }), kBad, "kv_heads -2");
    CHECK_FAILS(changed(good, [](Args& a) { a.kv_heads = 3; }), kBad,
                "heads 4, expected a multiple of 3 (= kv_heads)");
    CHECK_FAILS(changed(good, [](Args& a) { a.head_dim = 100; }), kBad,
                "head_dim 100, expected a multiple of 8");
    CHECK_FAILS(changed(good, [](Args& a) { a.head_dim = 64; }), kBad,
                "q cols 512, expected 256 (= heads * head_dim)");
    CHECK_FAILS(changed(good, [](Args& a) { a.k.cols = 128; }), kBad,
                "k cols 128, expected 256 (= kv_heads * head_dim)");
    CHECK_FAILS(changed(good, [](Args& a) { a.v.rows = 11; }), kBad,
                "v rows 11, expected 12 (= k rows)");
    CHECK_FAILS(changed(good, [](Args& a) { a.out.rows = 12; }), kBad,
                "out rows 12, expected 9 (= q rows)");
    CHECK_FAILS(changed(good, [](Args& a) { a.out.data = a.k.data; }), kBad,
                "out shares memory with k");
    CHECK_FAILS(changed(good, [](Args& a) { a.out.data = a.v.data; }), kBad,
                "out shares memory with v");
    CHECK_FAILS(changed(good, [](Args& a) { a.scale = NAN; }), kBad, "scale nan");
}

TEST(elementwise) {
    const SwigluArgs swiglu = {f32(0, 3, 10), f32(1, 3, 10), f32(0, 3, 10)};
    CHECK_OK(check(swiglu));
    CHECK_FAILS(changed(swiglu, [](SwigluArgs& a) { a.up.cols = 9; }), kBad,
                "swiglu: up cols 9, expected 10 (= gate cols)");
    CHECK_FAILS(changed(swiglu, [](SwigluArgs& a) { a.out.rows = 2; }), kBad,
                "out rows 2, expected 3 (= gate rows)");
    CHECK_FAILS(changed(swiglu, [](SwigluArgs& a) { a.gate.data = nullptr; }), kBad,
                "gate is absent");
    const SiluArgs silu = {f32(0, 3, 10), f32(0, 3, 10)};
    CHECK_OK(check(silu));
    CHECK_FAILS(changed(silu, [](SiluArgs& a) { a.out.cols = 9; }), kBad,
                "silu: out cols 9, expected 10 (= x cols)");
    const AffineArgs affine = {f32(0, 3, 10), f32(1, 2, 10), f32(0, 3, 10)};
    CHECK_OK(check(affine));
    CHECK_FAILS(changed(affine, [](AffineArgs& a) { a.affine.rows = 1; }), kBad,
                "affine: affine rows 1, expected 2");
    CHECK_FAILS(changed(affine, [](AffineArgs& a) { a.out.rows = 4; }), kBad, "affine: out rows 4");
}

TEST(embed_rows) {
    const int32_t ids[3] = {0, 99, 5}, negative[3] = {0, -1, 5}, beyond[3] = {0, 1, 100};
    const EmbedRowsArgs good = {weight(DType::kQ8_0, 100, 64), ids, f32(0, 3, 64)};
    CHECK_OK(check(good));
    CHECK_FAILS(changed(good, [](EmbedRowsArgs& a) { a.ids = nullptr; }), kBad,
                "embed_rows: ids are absent");
    CHECK_FAILS(changed(good, [&](EmbedRowsArgs& a) { a.ids = negative; }), kBad,
                "ids[1] is -1, expected 0 to 99");
    CHECK_FAILS(changed(good, [&](EmbedRowsArgs& a) { a.ids = beyond; }), kBad,
                "ids[2] is 100, expected 0 to 99");
    CHECK_FAILS(changed(good, [](EmbedRowsArgs& a) { a.out.cols = 32; }), kBad,
                "out cols 32, expected 64 (= table cols)");
}

TEST(conv2d) {
    Conv2dArgs good;
    good.x = f32(0, 35, 12), good.weight = weight(DType::kBF16, 20, 108), good.out = f32(1, 35, 20);
    good.height = 5, good.width = 7;
    CHECK_OK(check(good));
    using Args = Conv2dArgs;
    CHECK_OK(changed(
        good, [](Args& a) { a.bias = f32(2, 1, 20), a.affine = f32(3, 2, 12), a.add = a.out; }));
    CHECK_OK(changed(good, [](Args& a) { a.kernel = 1, a.weight = weight(DType::kF16, 20, 12); }));
    CHECK_OK(changed(good, [](Args& a) { a.upsample = true, a.out.rows = 140; }));
    CHECK_FAILS(changed(good, [](Args& a) { a.upsample = true; }), kBad,
                "conv2d: out rows 35, expected 140 (= 4 * height * width)");
    CHECK_FAILS(changed(good, [](Args& a) { a.kernel = 5; }), kBad, "kernel 5, expected 1 or 3");
    CHECK_FAILS(changed(good, [](Args& a) { a.height = 0; }), kBad, "height 0");
    CHECK_FAILS(changed(good, [](Args& a) { a.width = -7; }), kBad, "width -7");
    CHECK_FAILS(changed(good, [](Args& a) { a.width = a.height = int64_t{1} << 33; }), kBad,
                "sides below 2^31");
    CHECK_FAILS(changed(good, [](Args& a) { a.width = 8; }), kBad,
                "x rows 35, expected 40 (= height * width)");
    CHECK_FAILS(changed(good, [](Args& a) { a.weight = weight(DType::kBF16, 20, 12); }), kBad,
                "weight cols 12, expected 108 (= kernel * kernel * x cols)");
    CHECK_FAILS(changed(good, [](Args& a) { a.weight = weight(DType::kQ8_0, 20, 128); }), kBad,
                "weight is Q8_0, expected F32, F16 or BF16");
    CHECK_FAILS(changed(good, [](Args& a) { a.bias = f32(2, 1, 12); }), kBad,
                "bias cols 12, expected 20 (= weight rows)");
    CHECK_FAILS(changed(good, [](Args& a) { a.affine = f32(2, 2, 20); }), kBad,
                "affine cols 20, expected 12 (= x cols)");
    CHECK_FAILS(changed(good, [](Args& a) { a.add = f32(2, 36, 20); }), kBad,
                "add rows 36, expected 35");
    CHECK_FAILS(changed(good, [](Args& a) { a.out.cols = 12; }), kBad,
                "out cols 12, expected 20 (= weight rows)");
    CHECK_FAILS(changed(good, [](Args& a) { a.out.data = a.x.data; }), kBad,
                "out shares memory with x");
}

// Gate and up of an MLP become one before they are stored: where a backend offers it.
TEST(activate) {
    ActivationTypes types;
    static int8_t bytes[3 * 512];
    alignas(16) static float scales[4 * 300];
    Tensor codes{DType::kI8, 3, 512, 512, bytes};
    codes.scales = scales;
    codes.scale_stride = scale_stride_of(3);
    LinearArgs good;
    good.x = codes.slice_cols(0, 384);
    good.count = 1;
    good.projections[0].weight = weight(DType::kQ8_0, 256, 384);
    good.projections[0].out = codes.slice_cols(384, 128);
    good.projections[0].activate = true;
    types.product = DType::kI8;
    CHECK_FAILS(check(good, types), kBad, "activate is asked for x of I8, expected a backend");
    types.activate = true;
    CHECK_OK(check(good, types));
    const auto with = [&](const std::function<void(Projection&)>& change) {
        LinearArgs args = good;
        change(args.projections[0]);
        return check(args, types);
    };
    CHECK_OK(with([](Projection& p) { p.out = f32(1, 3, 128); }));
    CHECK_FAILS(with([](Projection& p) { p.bias = f32(1, 1, 256); }), kBad, "excludes accumulate");
    CHECK_FAILS(with([](Projection& p) { p.accumulate = true; }), kBad, "excludes accumulate");
    CHECK_FAILS(with([](Projection& p) { p.weight.rows = 255; }), kBad, "weight rows 255");
    CHECK_FAILS(with([](Projection& p) { p.out = f32(1, 3, 256); }), kBad,
                "out cols 256, expected 128 (= half of weight rows)");
    good.x = f32(0, 3, 384);
    CHECK_FAILS(check(good, types), kBad, "activate is asked for x of F32");
}

// Groups that share a scale: those the backend wants, whole ones, and low-bit weights for the wide.
TEST(codes) {
    ActivationTypes types;
    types.product = DType::kI8;
    static int8_t bytes[2048];
    alignas(16) static float scales[2048 / kGroup * 300];
    Tensor joined{DType::kI8, 10, 2048, 2048, bytes};
    joined.scales = scales;
    joined.scale_stride = scale_stride_of(10);
    LinearArgs args = linear();
    args.count = 1;
    const auto product = [&](const Tensor& x, DType dtype) {
        args.x = x;
        args.projections[0].weight = weight(dtype, 384, x.cols);
        args.projections[0].out.rows = x.rows;
        return check(args, types);
    };
    CHECK_OK(product(joined.slice_cols(640, 1408), DType::kQ8_0));
    CHECK_FAILS(product(joined.slice_cols(128, 1408), DType::kQ4_1), kBad, "cannot meet");
    joined.scale_group = kWideGroup;
    CHECK_FAILS(product(joined, DType::kQ1_0), kBad, "a scale for 512 inputs, expected for 128");
    types.low_bit_group = kWideGroup;
    CHECK_OK(product(joined, DType::kQ1_0));
    CHECK_OK(product(joined.slice_cols(512, 1408), DType::kPQ2_0));
    joined.scale_group = 256;
    CHECK_OK(product(joined.slice_cols(256, 1408), DType::kPQ2_0));
    joined.scale_group = 384;
    CHECK_FAILS(product(joined, DType::kQ1_0), kBad, "a scale for 384 inputs");
    joined.scale_group = kWideGroup;
    CHECK_FAILS(product(joined, DType::kQ8_0), kBad, "expected a low-bit type");
    CHECK_FAILS(product(joined.slice_cols(640, 1408), DType::kQ1_0), kBad,
                "begins at a multiple of 512");
    CHECK_OK(product(joined.slice_rows(4, 6), DType::kQ1_0));
    CHECK_FAILS(product(joined.slice_rows(5, 5), DType::kQ1_0), kBad, "begins at a multiple of 4");
    joined.scale_stride = 16;
    CHECK_FAILS(product(joined, DType::kQ1_0), kBad, "scales 16 apart");
}
