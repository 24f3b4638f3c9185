// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/half.h"
#include "device_case.h"

namespace backend_test {

namespace {

struct Shape {
    int64_t queries, keys;
    int heads, kv_heads, head_dim;
    bool causal;
};
// Heads that fill a tile and heads that do not, shared key heads, fewer keys than queries, tiles of
// queries and keys that end early.
const Shape kShapes[] = {
    {1, 1, 1, 1, 8, false},      {5, 7, 2, 1, 24, false},      {97, 193, 2, 1, 40, false},
    {64, 64, 1, 1, 16, false},   {130, 200, 4, 2, 128, false}, {300, 300, 2, 2, 128, true},
    {260, 140, 4, 1, 96, true},  {200, 20, 2, 1, 32, true},    {150, 150, 4, 2, 64, true},
    {385, 513, 2, 2, 72, false}, {33, 100, 1, 1, 136, false},  {150, 150, 2, 1, 160, true},
    {100, 256, 1, 1, 512, false}};

std::string name_of(const Shape& s, int64_t gap) {
    return format("%lld queries, %lld keys, %d heads on %d of %d%s, gap %lld",
                  static_cast<long long>(s.queries), static_cast<long long>(s.keys), s.heads,
                  s.kv_heads, s.head_dim, s.causal ? ", causal" : "", static_cast<long long>(gap));
}

// `into_q`: the result takes the place of the queries.
void compare(Pair& pair, const Shape& s, int64_t gap, float spread, float scale, bool into_q,
             double allowed) {
    Case c(pair, name_of(s, gap));
    const int64_t width = int64_t{s.heads} * s.head_dim,
                  kv_width = int64_t{s.kv_heads} * s.head_dim;
    const Operand q = c.random(s.queries, width, gap, gap, 0, spread),
                  k = c.random(s.keys, kv_width, gap + 8, gap, 0, spread),
                  v = c.random(s.keys, kv_width, gap + 24, gap, 0, spread),
                  out = into_q ? q : c.room(s.queries, width, gap, gap);
    c.run([&](Side side) {
        AttentionArgs args;
        args.q = q[side], args.k = k[side], args.v = v[side], args.out = out[side];
        args.heads = s.heads, args.kv_heads = s.kv_heads, args.head_dim = s.head_dim;
        args.scale = scale / std::sqrt(static_cast<float>(s.head_dim)), args.causal = s.causal;
        return side.backend.attention(args);
    });
    c.expect_close(out, allowed);
}

// Rounding of wide heads to f16 counts in both precisions: they appear in the VAE only.
double allowed(const Shape& s, double narrow) {
    return s.head_dim > 128 ? 2e-3 : narrow;
}

} // namespace

// f16 operands: each rounding is at most 2^-11 of a number, some five of them meet. The processor's
// own fast attention may round more than that.
TEST(device_attention_fast) {
    for_each_device(Precision::kFast, Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes)
            for (const int64_t gap : {0, 3})
                compare(pair, s, gap, 1, 2, false, allowed(s, 2e-3));
    });
}

TEST(device_attention_exact) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const Shape& s : kShapes)
            for (const int64_t gap : {0, 3})
                compare(pair, s, gap, 1, 2, false, allowed(s, 3e-5));
        compare(pair, {100, 130, 2, 1, 128, false}, 0, 1e-20f, 1, false, 3e-5);
        compare(pair, {100, 130, 2, 1, 64, true}, 0, 1e6f, 1e-11f, false, 3e-5);
    });
}

TEST(device_attention_special_scales) {
    for (const Precision precision : {Precision::kFast, Precision::kExact}) {
        for_each_device(precision, Precision::kExact, [](Pair& pair) {
            for (const float scale : {0.0f, -1.5f}) {
                compare(pair, {70, 90, 2, 1, 128, true}, 0, 1, scale, false, 2e-3);
                compare(pair, {70, 90, 2, 1, 200, true}, 0, 1, scale, false, 2e-3);
            }
        });
    }
}

TEST(device_attention_into_queries) {
    for_each_device(Precision::kFast, Precision::kExact, [](Pair& pair) {
        for (const int head_dim : {64, 128, 192})
            compare(pair, {200, 150, 2, 2, head_dim, false}, 0, 1, 1, true, 2e-3);
    });
}

// The key of the largest logit comes last, later blocks of keys each move the maximum.
TEST(device_attention_rising_logits) {
    for_each_device(Precision::kFast, Precision::kExact, [](Pair& pair) {
        for (const int head_dim : {32, 128}) {
            Case c(pair, format("heads of %d", head_dim));
            const Operand q = c.filled(150, head_dim, [](int64_t, int64_t d) { return d == 0; }),
                          k = c.filled(700, head_dim,
                                       [](int64_t j, int64_t d) {
                                           return d == 0 ? 0.25f * static_cast<float>(j) : 0.0f;
                                       }),
                          v = c.random(700, head_dim), out = c.room(150, head_dim);
            c.run([&](Side side) {
                return side.backend.attention(
                    {q[side], k[side], v[side], out[side], 1, 1, head_dim, 1.0f, false});
            });
            c.expect_close(out, 2e-3);
        }
    });
}

namespace {

// Matrices of a backend's own types, in memory of its own.
class Typed {
  public:
    explicit Typed(Backend& backend) : backend_(backend) {}
    Tensor room(DType dtype, int64_t rows, int64_t cols, int scale_group = kGroup) {
        Tensor t{dtype, rows, cols, cols, nullptr};
        t.data = take(static_cast<size_t>(rows) * row_bytes(dtype, cols));
        if (dtype == DType::kI8) {
            t.scale_stride = scale_stride_of(rows);
            t.scale_group = scale_group;
            t.scales = static_cast<float*>(
                take(static_cast<size_t>(scale_groups(cols, scale_group) * t.scale_stride) *
                     sizeof(float)));
        }
        return t;
    }
    // f32 or f16 of what f16 holds.
    Tensor filled(DType dtype, int64_t rows, int64_t cols, const std::vector<uint16_t>& halves) {
        const Tensor t = room(dtype, rows, cols);
        std::vector<float> floats;
        for (const uint16_t half : halves)
            floats.push_back(f16_to_f32(half));
        CHECK_OK(backend_.write(t, dtype == DType::kF16 ? static_cast<const void*>(halves.data())
                                                        : static_cast<const void*>(floats.data())));
        return t;
    }
    std::vector<float> values(const Tensor& t) {
        const auto count = static_cast<size_t>(t.rows * t.cols);
        std::vector<float> found(count);
        if (t.dtype == DType::kF32) {
            CHECK_OK(backend_.read(t, found.data()));
            return found;
        }
        std::vector<int8_t> codes(count);
        const int64_t groups = scale_groups(t.cols, t.scale_group);
        std::vector<float> scales(static_cast<size_t>(groups * t.scale_stride));
        CHECK_OK(backend_.read(t, codes.data()));
        CHECK_OK(backend_.read(f32_matrix(t.scales, groups, t.scale_stride), scales.data()));
        for (int64_t r = 0; r < t.rows; ++r)
            for (int64_t c = 0; c < t.cols; ++c)
                found[static_cast<size_t>(r * t.cols + c)] =
                    codes[static_cast<size_t>(r * t.cols + c)] *
                    scales[static_cast<size_t>(c / t.scale_group * t.scale_stride + r)];
        return found;
    }

  private:
    void* take(size_t bytes) {
        buffers_.emplace_back();
        CHECK_OK(backend_.allocate(bytes, &buffers_.back()));
        return buffers_.back()->data();
    }
    Backend& backend_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
};

// Queries, keys and values side by side as behind a fused product, in the types that the backend
// asks for.
std::vector<float> joint_attention(Backend& backend, const Shape& s, int scale_group) {
    const int64_t width = int64_t{s.heads} * s.head_dim,
                  kv_width = int64_t{s.kv_heads} * s.head_dim;
    const int64_t cols = width + 2 * kv_width;
    std::vector<uint16_t> halves;
    uint32_t state = 1;
    for (int64_t i = 0; i < s.queries * cols; ++i) {
        state = state * 1664525 + 1013904223;
        halves.push_back(f32_to_f16(static_cast<float>(state >> 8) / (1 << 23) - 1));
    }
    Typed typed(backend);
    const ActivationTypes types = backend.activations();
    const Tensor qkv = typed.filled(types.heads, s.queries, cols, halves);
    AttentionArgs args;
    args.q = qkv.slice_cols(0, width), args.k = qkv.slice_cols(width, kv_width);
    args.v = qkv.slice_cols(width + kv_width, kv_width);
    args.k.rows = args.v.rows = s.keys;
    args.out = typed.room(types.product, s.queries, width, scale_group);
    args.heads = s.heads, args.kv_heads = s.kv_heads, args.head_dim = s.head_dim;
    args.scale = 2 / std::sqrt(static_cast<float>(s.head_dim)), args.causal = s.causal;
    CHECK_OK(backend.attention(args));
    return typed.values(args.out);
}

} // namespace

// Codes of int8 differ by half a 127th of the largest of their group.
TEST(device_attention_types) {
    for_each_device(Precision::kFast, Precision::kExact, [](Pair& pair) {
        for (const Shape& s : {Shape{300, 300, 2, 2, 128, false}, Shape{150, 150, 4, 2, 64, true},
                               Shape{520, 470, 3, 1, 128, false}, Shape{260, 140, 4, 1, 128, true},
                               Shape{200, 200, 4, 4, 96, false}}) {
            const std::vector<float> expected = joint_attention(*pair.cpu, s, kGroup);
            for (int group = kGroup; group <= pair.device->activations().low_bit_group;
                 group *= 2) {
                const std::vector<float> found = joint_attention(*pair.device, s, group);
                float largest = 0, worst = 0;
                for (size_t i = 0; i < expected.size(); ++i) {
                    largest = std::max(largest, std::fabs(expected[i]));
                    const float error = std::fabs(found[i] - expected[i]);
                    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
                }
                std::printf("%s, groups of %d: off by %.2e of the largest\n", name_of(s, 0).c_str(),
                            group, static_cast<double>(worst / largest));
                CHECK(worst < 6e-3f * largest);
            }
        }
    });
}

} // namespace backend_test
