// SPDX-License-Identifier: Apache-2.0
// The types of activations that a backend prefers change nothing but the bytes that move: what an
// op writes as I8 gives the same products, bit for bit, as the floats it writes otherwise; and F16
// is close.
#include <cmath>

#include "backends/arena.h"
#include "device_case.h"

namespace backend_test {

namespace {

constexpr int64_t kRows = 77, kIn = 512, kOut = 48;

// Floats on the device and a weight, made by a Case, whose own comparison is not needed here.
struct Bench {
    explicit Bench(Pair& pair) : backend(*pair.device), inputs(pair, "activation types") {
        CHECK_OK(Arena::create(backend, 64 << 20, &arena));
    }
    Tensor make(int64_t rows, int64_t cols, DType dtype) {
        Tensor out;
        CHECK_OK(arena->allocate(rows, cols, dtype, &out));
        return out;
    }
    // out = x W^T
    std::vector<float> product(const Tensor& x, const Tensor& weight) {
        Tensor out = make(x.rows, weight.rows, DType::kF32);
        LinearArgs args;
        args.x = x;
        args.projections[0].weight = weight;
        args.projections[0].out = out;
        args.count = 1;
        CHECK_OK(backend.linear(args));
        std::vector<float> values(static_cast<size_t>(out.rows * out.cols));
        CHECK_OK(backend.read(out, values.data()));
        arena->release(&out);
        return values;
    }
    // The op's result as floats and as I8, whole and rows from 16 on, gives the same product.
    void compare(const char* what, int64_t cols, const Tensor& weight,
                 const std::function<Status(const Tensor& out)>& op) {
        const Tensor floats = make(kRows, cols, DType::kF32), codes = make(kRows, cols, DType::kI8);
        CHECK_OK(op(floats));
        CHECK_OK(op(codes));
        const bool whole = product(floats, weight) == product(codes, weight);
        const bool rows =
            product(floats.slice_rows(16, 21), weight) == product(codes.slice_rows(16, 21), weight);
        if (!whole || !rows) std::printf("%s: whole %d, rows %d\n", what, whole, rows);
        CHECK(whole && rows);
    }

    Backend& backend;
    Case inputs;
    std::unique_ptr<Arena> arena;
};

bool offers(Backend& backend, DType ActivationTypes::* use, DType dtype) {
    if (backend.activations().*use == dtype) return true;
    std::printf("SKIPPED: %s has no use for %s\n", backend.device().id.c_str(),
                dtype_info(dtype).name);
    return false;
}

} // namespace

TEST(device_products_of_codes) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        if (!offers(*pair.device, &ActivationTypes::product, DType::kI8)) return;
        for (const DType dtype :
             {DType::kPQ2_0, DType::kPTQ1_0, DType::kQ1_0, DType::kQ8_0, DType::kQ4_0}) {
            Bench b(pair);
            const Tensor weight = b.inputs.weight(dtype, kOut, kIn).on[1];
            const Tensor x = b.inputs.random(kRows, kIn, 0, 0, 0.5f, 3).on[1],
                         scale = b.inputs.random(1, kIn).on[1],
                         shift = b.inputs.random(1, kIn).on[1];
            b.inputs.run([](Side) { return Status(); }); // writes the inputs
            b.compare(dtype_info(dtype).name, kIn, weight, [&](const Tensor& out) {
                return b.backend.layer_norm({x, scale, shift, out, 1e-6f});
            });
        }
    });
}

TEST(device_swiglu_and_attention_to_codes) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        if (!offers(*pair.device, &ActivationTypes::product, DType::kI8)) return;
        Bench b(pair);
        const Tensor weight = b.inputs.weight(DType::kPQ2_0, kOut, kIn).on[1];
        const Tensor both = b.inputs.random(kRows, 2 * kIn, 0, 0, 0, 4).on[1],
                     qkv = b.inputs.random(kRows, 3 * kIn).on[1];
        b.inputs.run([](Side) { return Status(); });
        b.compare("swiglu", kIn, weight, [&](const Tensor& out) {
            return b.backend.swiglu({both.slice_cols(0, kIn), both.slice_cols(kIn, kIn), out});
        });
        AttentionArgs attention;
        attention.q = qkv.slice_cols(0, kIn);
        attention.k = qkv.slice_cols(kIn, kIn);
        attention.v = qkv.slice_cols(2 * kIn, kIn);
        attention.heads = attention.kv_heads = kIn / 128;
        attention.head_dim = 128;
        attention.scale = 0.1f;
        b.compare("attention", kIn, weight, [&](const Tensor& out) {
            attention.out = out;
            return b.backend.attention(attention);
        });
        // Side by side in one matrix, as in a single block.
        const Tensor wide = b.inputs.weight(DType::kPQ2_0, kOut, 2 * kIn).on[1];
        b.compare("joined", 2 * kIn, wide, [&](const Tensor& out) {
            attention.out = out.slice_cols(0, kIn);
            BONSAI_TRY(b.backend.attention(attention));
            return b.backend.swiglu(
                {both.slice_cols(0, kIn), both.slice_cols(kIn, kIn), out.slice_cols(kIn, kIn)});
        });
    });
}

// From a product to heads in F16: 2^-11 of a value is lost at each write.
TEST(device_heads_of_half_precision) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        if (!offers(*pair.device, &ActivationTypes::heads, DType::kF16)) return;
        Bench b(pair);
        const int64_t width = 256;
        const Tensor weight = b.inputs.weight(DType::kPQ2_0, 3 * width, kIn).on[1];
        const Tensor x = b.inputs.random(kRows, kIn).on[1],
                     gain = b.inputs.random(1, 128, 0, 0, 1, 0.5f).on[1];
        const auto turn = [](float (*f)(float)) {
            return [f](int64_t r, int64_t i) { return f(static_cast<float>(r * (i + 1)) * 0.01f); };
        };
        const Tensor cos = b.inputs.filled(kRows, 64, turn(std::cos)).on[1],
                     sin = b.inputs.filled(kRows, 64, turn(std::sin)).on[1];
        b.inputs.run([](Side) { return Status(); });
        std::vector<float> found[2];
        for (int half = 0; half < 2; ++half) {
            const Tensor qkv = b.make(kRows, 3 * width, half ? DType::kF16 : DType::kF32);
            const Tensor out = b.make(kRows, width, DType::kF32);
            LinearArgs product;
            product.x = x;
            product.projections[0].weight = weight;
            product.projections[0].out = qkv;
            product.count = 1;
            CHECK_OK(b.backend.linear(product));
            for (const int64_t first : {int64_t{0}, width}) {
                HeadNormRopeArgs rope;
                rope.x = qkv.slice_cols(first, width);
                rope.gain = gain, rope.cos = cos, rope.sin = sin;
                rope.head_dim = 128, rope.eps = 1e-6f;
                CHECK_OK(b.backend.head_norm_rope(rope));
            }
            AttentionArgs attention;
            attention.q = qkv.slice_cols(0, width);
            attention.k = qkv.slice_cols(width, width);
            attention.v = qkv.slice_cols(2 * width, width);
            attention.out = out;
            attention.heads = attention.kv_heads = 2;
            attention.head_dim = 128;
            attention.scale = 0.08838835f;
            CHECK_OK(b.backend.attention(attention));
            found[half].resize(static_cast<size_t>(kRows * width));
            CHECK_OK(b.backend.read(out, found[half].data()));
        }
        double error = 0, size = 0;
        for (size_t i = 0; i < found[0].size(); ++i) {
            const double difference = static_cast<double>(found[1][i]) - found[0][i];
            error += difference * difference;
            size += static_cast<double>(found[0][i]) * found[0][i];
        }
        CHECK(std::sqrt(error / size) < 2e-3);
        CHECK(size > 0);
    });
}

} // namespace backend_test
