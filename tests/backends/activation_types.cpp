// SPDX-License-Identifier: Apache-2.0
// The types of activations that a backend prefers change nothing but the bytes that move: what an
// op writes as I8 gives the same products, bit for bit, as the floats it writes otherwise; and F16
// is close.
#include <algorithm>
#include <cmath>

#include "backends/arena.h"
#include "core/half.h"
#include "device_case.h"

namespace backend_test {

namespace {

constexpr int64_t kRows = 77, kIn = 640, kOut = 48; // a group of 512 and a short one

// The codes of an I8 matrix row by row, and its scales.
struct Coded {
    std::vector<int8_t> codes;
    std::vector<float> scales;
    bool operator==(const Coded& o) const { return codes == o.codes && scales == o.scales; }
};

// As backends/cuda/quantize_group.cuh states it.
Coded codes_of(const std::vector<float>& values, int64_t cols, int group) {
    Coded out;
    const auto rows = static_cast<int64_t>(values.size()) / cols;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t first = 0; first < cols; first += group) {
            const float* x = &values[static_cast<size_t>(r * cols + first)];
            const int64_t count = std::min<int64_t>(group, cols - first);
            float largest = 0;
            for (int64_t i = 0; i < count; ++i)
                largest = std::max(largest, std::fabs(x[i]));
            const bool usable = largest >= 0x1p-100f;
            const float inverse = usable ? 127.0f / largest : 0.0f;
            out.scales.push_back(usable ? largest / 127.0f : 0.0f);
            for (int64_t i = 0; i < count; ++i)
                out.codes.push_back(static_cast<int8_t>(std::nearbyint(x[i] * inverse)));
        }
    return out;
}

// Floats on the device and a weight, made by a Case, whose own comparison is not needed here.
struct Bench {
    explicit Bench(Pair& pair) : backend(*pair.device), inputs(pair, "activation types") {
        CHECK_OK(Arena::create(backend, 64 << 20, &arena));
    }
    Tensor make(int64_t rows, int64_t cols, DType dtype, int scale_group = kGroup) {
        Tensor out;
        CHECK_OK(arena->allocate(rows, cols, dtype, &out, scale_group));
        return out;
    }
    // out = x W^T
    std::vector<float> product(const Tensor& x, const Tensor& weight) {
        Tensor out = make(x.rows, weight.rows, DType::kF32);
        CHECK_OK(backend.linear(linear_args(x, weight, out)));
        std::vector<float> values(static_cast<size_t>(out.rows * out.cols));
        CHECK_OK(backend.read(out, values.data()));
        arena->release(&out);
        return values;
    }
    // The op's result as I8 is the codes of its result as floats; and both, whole and rows from 16
    // on, give the same product where the device makes such groups of floats, too. Codes of
    // attention in groups of 512 come from f16.
    void compare(const char* what, int64_t cols, const Tensor& weight, bool through_f16,
                 const std::function<Status(const Tensor& out)>& op) {
        const int low_bit = backend.activations().low_bit_group;
        const int usual = is_low_bit(weight.dtype) ? low_bit : kGroup;
        for (int group = kGroup; group <= usual; group *= 2) {
            Tensor floats = make(kRows, cols, DType::kF32),
                   codes = make(kRows, cols, DType::kI8, group);
            CHECK_OK(op(floats));
            CHECK_OK(op(codes));
            std::vector<float> values(static_cast<size_t>(kRows * cols));
            CHECK_OK(backend.read(floats, values.data()));
            for (float& value : values)
                if (through_f16 && group != kGroup) value = f16_to_f32(f32_to_f16(value));
            const bool same = read_codes(codes) == codes_of(values, cols, group);
            CHECK_OK(backend.write(floats, values.data()));
            const bool products = halves(weight.dtype) ? near_products(codes, weight)
                                  : group == usual     ? same_products(floats, codes, weight)
                                                       : true;
            if (!same || !products)
                std::printf("%s, groups of %d: codes %d, products %d\n", what, group, same,
                            products);
            CHECK(same && products);
            arena->release(&floats);
            arena->release(&codes);
        }
    }
    // Whether f32 rows meet such weights as f16 (linear_half.cpp), not as codes.
    bool halves(DType dtype) const {
        return backend.device().features == "sm_90" && is_block_quantized(dtype) &&
               !is_low_bit(dtype);
    }
    // The product of the codes is that of the floats they stand for, but for their rounding to f16.
    bool near_products(const Tensor& codes, const Tensor& weight) {
        const Coded coded = read_codes(codes);
        std::vector<float> values(coded.codes.size());
        const auto cols = static_cast<size_t>(codes.cols);
        const auto group = static_cast<size_t>(codes.scale_group);
        const auto groups = static_cast<size_t>(scale_groups(codes.cols, codes.scale_group));
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = coded.scales[i / cols * groups + i % cols / group] *
                        static_cast<float>(coded.codes[i]);
        Tensor floats = make(codes.rows, codes.cols, DType::kF32);
        CHECK_OK(backend.write(floats, values.data()));
        const std::vector<float> expected = product(floats, weight), found = product(codes, weight);
        arena->release(&floats);
        float largest = 0, worst = 0;
        for (size_t i = 0; i < found.size(); ++i) {
            largest = std::max(largest, std::fabs(expected[i]));
            const float difference = std::fabs(found[i] - expected[i]);
            worst = difference <= worst ? worst : difference; // a NaN stays
        }
        return worst <= 1e-3f * largest;
    }
    bool same_products(const Tensor& a, const Tensor& b, const Tensor& weight) {
        return product(a, weight) == product(b, weight) &&
               product(a.slice_rows(16, 21), weight) == product(b.slice_rows(16, 21), weight);
    }
    Coded read_codes(const Tensor& t) {
        const int64_t groups = scale_groups(t.cols, t.scale_group);
        std::vector<float> scales(static_cast<size_t>(groups * t.scale_stride));
        Coded found;
        found.codes.resize(static_cast<size_t>(t.rows * t.cols));
        CHECK_OK(backend.read(t, found.codes.data()));
        CHECK_OK(backend.read(f32_matrix(t.scales, groups, t.scale_stride), scales.data()));
        for (int64_t r = 0; r < t.rows; ++r)
            for (int64_t g = 0; g < groups; ++g)
                found.scales.push_back(scales[static_cast<size_t>(g * t.scale_stride + r)]);
        return found;
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
            b.compare(dtype_info(dtype).name, kIn, weight, false, [&](const Tensor& out) {
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
        b.compare("swiglu", kIn, weight, false, [&](const Tensor& out) {
            return b.backend.swiglu({both.slice_cols(0, kIn), both.slice_cols(kIn, kIn), out});
        });
        AttentionArgs attention;
        attention.q = qkv.slice_cols(0, kIn);
        attention.k = qkv.slice_cols(kIn, kIn);
        attention.v = qkv.slice_cols(2 * kIn, kIn);
        attention.heads = attention.kv_heads = kIn / 128;
        attention.head_dim = 128;
        attention.scale = 0.1f;
        b.compare("attention", kIn, weight, true, [&](const Tensor& out) {
            attention.out = out;
            return b.backend.attention(attention);
        });
        // Side by side in one matrix, as in a single block.
        const int64_t width = 512;
        const Tensor joint = b.inputs.weight(DType::kPQ2_0, kOut, width + kIn).on[1];
        attention.q = qkv.slice_cols(0, width);
        attention.k = qkv.slice_cols(kIn, width);
        attention.v = qkv.slice_cols(2 * kIn, width);
        attention.heads = attention.kv_heads = width / 128;
        for (int group = kGroup; group <= b.backend.activations().low_bit_group; group *= 2) {
            const Tensor floats = b.make(kRows, width + kIn, DType::kF32),
                         codes = b.make(kRows, width + kIn, DType::kI8, group);
            for (const Tensor& out : {floats, codes}) {
                attention.out = out.slice_cols(0, width);
                CHECK_OK(b.backend.attention(attention));
                CHECK_OK(b.backend.swiglu({both.slice_cols(0, kIn), both.slice_cols(kIn, kIn),
                                           out.slice_cols(width, kIn)}));
            }
            const std::vector<float> expected = b.product(floats, joint),
                                     found = b.product(codes, joint);
            double error = 0, size = 0;
            for (size_t i = 0; i < expected.size(); ++i) {
                const double difference = static_cast<double>(found[i]) - expected[i];
                error += difference * difference;
                size += static_cast<double>(expected[i]) * expected[i];
            }
            // Halves of a 127th at most, and both round.
            CHECK(std::sqrt(error / size) < 1e-2);
            CHECK(size > 0);
        }
    });
}

// Gate and up in F16: codes are those of the floats, and floats are within 2^-18 of the rule; of
// more rows, too, than a launch has in its second direction.
TEST(device_swiglu_of_half_precision) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        if (!offers(*pair.device, &ActivationTypes::hidden, DType::kF16)) return;
        Bench b(pair);
        const Tensor weight = b.inputs.weight(DType::kPQ2_0, kOut, kIn).on[1];
        const auto halves_of = [&](int64_t rows, int64_t cols, std::vector<float>* values) {
            std::vector<uint16_t> stored;
            for (int64_t i = 0; i < rows * cols; ++i) {
                stored.push_back(f32_to_f16(static_cast<float>(i * 7919 % 2003 - 1001) / 125));
                values->push_back(f16_to_f32(stored.back()));
            }
            const Tensor there = b.make(rows, cols, DType::kF16);
            CHECK_OK(b.backend.write(there, stored.data()));
            return there;
        };
        std::vector<float> values;
        const Tensor both = halves_of(kRows, 2 * kIn, &values);
        b.compare("swiglu of f16", kIn, weight, false, [&](const Tensor& out) {
            return b.backend.swiglu({both.slice_cols(0, kIn), both.slice_cols(kIn, kIn), out});
        });
        values.clear();
        const int64_t rows = 66000, cols = 8;
        const Tensor many = halves_of(rows, 2 * cols, &values),
                     out = b.make(rows, cols, DType::kF32);
        CHECK_OK(b.backend.swiglu({many.slice_cols(0, cols), many.slice_cols(cols, cols), out}));
        std::vector<float> found(static_cast<size_t>(rows * cols));
        CHECK_OK(b.backend.read(out, found.data()));
        double worst = 0;
        for (size_t i = 0; i < found.size(); ++i) {
            const float* row = &values[i / 8 * 16 + i % 8];
            const double gate = row[0], up = row[8], rule = gate / (1 + std::exp(-gate)) * up;
            const double error = std::fabs(found[i] - rule) / std::max(std::fabs(rule), 1e-3);
            worst = error <= worst ? worst : error; // a NaN stays
        }
        CHECK(worst < 0x1p-18);
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
            CHECK_OK(b.backend.linear(linear_args(x, weight, qkv)));
            HeadNormRopeArgs rope;
            rope.x = qkv.slice_cols(0, width), rope.also = qkv.slice_cols(width, width);
            rope.gain = rope.also_gain = gain, rope.cos = cos, rope.sin = sin;
            rope.head_dim = 128, rope.eps = 1e-6f;
            CHECK_OK(b.backend.head_norm_rope(rope));
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

// Two products at once give what they give one after the other.
TEST(device_linear_pair) {
    for_each_device(Precision::kFast, [](Pair& pair) {
        if (!offers(*pair.device, &ActivationTypes::product, DType::kI8)) return;
        for (const DType dtype : {DType::kPQ2_0, DType::kQ1_0, DType::kQ8_0}) {
            Bench b(pair);
            const int group = is_low_bit(dtype) ? b.backend.activations().low_bit_group : kGroup;
            const Tensor scale = b.inputs.random(1, kIn).on[1],
                         shift = b.inputs.random(1, kIn).on[1];
            LinearArgs args[2];
            Tensor wide[2];
            for (int i = 0; i < 2; ++i) {
                const int64_t rows = i == 0 ? 150 : 40, outs[2] = {48, i == 0 ? 272 : 130};
                wide[i] = b.inputs.random(rows, kIn, 0, 0, 0.5f, 3).on[1];
                args[i].x = b.make(rows, kIn, DType::kI8, group);
                args[i].count = 2;
                for (int p = 0; p < 2; ++p) {
                    args[i].projections[p].weight = b.inputs.weight(dtype, outs[p], kIn).on[1];
                    args[i].projections[p].out = b.make(rows, outs[p], DType::kF32);
                }
            }
            b.inputs.run([](Side) { return Status(); }); // writes the inputs
            for (int i = 0; i < 2; ++i)
                CHECK_OK(b.backend.layer_norm({wide[i], scale, shift, args[i].x, 1e-6f}));
            const auto results = [&] {
                std::vector<float> all;
                for (const LinearArgs& a : args)
                    for (int p = 0; p < 2; ++p) {
                        const Tensor& out = a.projections[p].out;
                        std::vector<float> values(static_cast<size_t>(out.rows * out.cols));
                        CHECK_OK(b.backend.read(out, values.data()));
                        all.insert(all.end(), values.begin(), values.end());
                    }
                return all;
            };
            CHECK_OK(b.backend.linear(args[0]));
            CHECK_OK(b.backend.linear(args[1]));
            const std::vector<float> apart = results();
            for (const LinearArgs& a : args)
                for (int p = 0; p < 2; ++p) {
                    const Tensor& out = a.projections[p].out;
                    const std::vector<float> zeros(static_cast<size_t>(out.rows * out.cols));
                    CHECK_OK(b.backend.write(out, zeros.data()));
                }
            CHECK_OK(b.backend.linear_pair(args[0], args[1]));
            CHECK(results() == apart);
        }
    });
}

} // namespace backend_test
