// SPDX-License-Identifier: Apache-2.0
// The CPU backend around the kernels: results do not depend on the thread count, weights are never
// expanded beyond a tile, and the level can be forced.
#include "backends/cpu/backend.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>

#include "backends/arena.h"
#include "core/quantize.h"
#include "test.h"

using namespace bonsai;

static std::vector<float> random_values(size_t count, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values)
        value = normal(engine);
    return values;
}

static std::unique_ptr<Backend> backend(int threads, Precision precision = Precision::kFast) {
    std::unique_ptr<Backend> out;
    CHECK_OK(cpu::CpuBackend::create({threads, precision},
                                     cpu::levels_of(cpu::detected_features()).back(), &out));
    return out;
}

// A weight whose dense form would be 32 MB, through every packed type and both precisions.
TEST(no_op_expands_weights_beyond_a_tile) {
    constexpr int64_t rows = 40, in = 2048, out_features = 4096;
    constexpr size_t limit = 4 << 20;
    const std::vector<float> weights = random_values(in * out_features, 1);
    std::vector<float> x = random_values(rows * in, 2), y(rows * out_features);
    for (int i = 0; i < kDTypeCount; ++i) {
        const auto dtype = static_cast<DType>(i);
        std::vector<uint8_t> packed(static_cast<size_t>(out_features) * row_bytes(dtype, in));
        CHECK_OK(quantize_rows(dtype, weights.data(), out_features, in, packed.data()));
        for (const Precision precision : {Precision::kFast, Precision::kExact}) {
            const std::unique_ptr<Backend> cpu = backend(2, precision);
            CHECK_OK(cpu->linear(linear_args(f32_matrix(x.data(), rows, in),
                                             {dtype, out_features, in, in, packed.data()},
                                             f32_matrix(y.data(), rows, out_features))));
            const size_t peak = static_cast<cpu::CpuBackend&>(*cpu).scratch_peak();
            CHECK(peak > 0 && peak <= limit);
        }
    }
}

// What plans are told of an op is what it then takes, at every level and in both precisions.
TEST(scratch_is_what_was_announced) {
    constexpr int64_t rows = 40, width = 256, side = 8;
    const std::vector<float> values = random_values(9 * width * width, 1);
    std::vector<uint8_t> packed(static_cast<size_t>(width) * row_bytes(DType::kQ8_0, width)),
        kernel(values.size() * 2);
    CHECK_OK(quantize_rows(DType::kQ8_0, values.data(), width, width, packed.data()));
    CHECK_OK(quantize_rows(DType::kF16, values.data(), width, 9 * width, kernel.data()));
    std::vector<float> x = random_values(side * side * width, 2), y(x.size());
    int announced = 0;
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
        for (const Precision precision : {Precision::kFast, Precision::kExact}) {
            std::unique_ptr<Backend> device;
            CHECK_OK(cpu::CpuBackend::create({2, precision}, level, &device));
            const auto& cpu = static_cast<cpu::CpuBackend&>(*device);
            const auto check = [&](uint64_t bytes) {
                CHECK(cpu.shared_scratch() == bytes);
                announced += bytes > 0;
                device->release_scratch();
                CHECK(cpu.shared_scratch() == 0);
            };
            const LinearArgs linear =
                linear_args(f32_matrix(x.data(), rows, width),
                            {DType::kQ8_0, width, width, width, packed.data()},
                            f32_matrix(y.data(), rows, width));
            CHECK_OK(device->linear(linear));
            check(device->scratch_bytes(linear));
            AttentionArgs attention;
            attention.q = attention.k = attention.v = f32_matrix(x.data(), rows, width);
            attention.out = f32_matrix(y.data(), rows, width);
            attention.heads = attention.kv_heads = 2;
            attention.head_dim = width / 2;
            attention.scale = 0.1f;
            CHECK_OK(device->attention(attention));
            check(device->scratch_bytes(attention));
            Conv2dArgs conv;
            conv.x = f32_matrix(x.data(), side * side, width);
            conv.weight = {DType::kF16, width, 9 * width, 9 * width, kernel.data()};
            conv.bias = f32_matrix(x.data(), 1, width);
            conv.out = f32_matrix(y.data(), side * side, width);
            conv.height = conv.width = side;
            conv.kernel = 3;
            CHECK_OK(device->conv2d(conv));
            check(device->scratch_bytes(conv));
        }
    }
    CHECK(announced > 0); // the linear's, at every level
}

TEST(results_do_not_depend_on_the_thread_count) {
    constexpr int64_t pixels = 5000, channels = 64, groups = 8;
    std::vector<float> x = random_values(pixels * channels, 3), gain(channels, 1.5f),
                       bias(channels, 0.5f);
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 8}) {
        std::vector<float> affine(2 * channels);
        GroupNormArgs args;
        args.x = f32_matrix(x.data(), pixels, channels);
        args.gain = f32_matrix(gain.data(), 1, channels);
        args.bias = f32_matrix(bias.data(), 1, channels);
        args.affine = f32_matrix(affine.data(), 2, channels);
        args.groups = groups;
        args.eps = 1e-6f;
        CHECK_OK(backend(threads)->group_norm(args));
        if (first.empty()) first = affine;
        CHECK(std::memcmp(first.data(), affine.data(), affine.size() * sizeof(float)) == 0);
    }
    // Mean and variance of the first group, directly.
    double sum = 0, squares = 0;
    for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t c = 0; c < channels / groups; ++c) {
            const double value = x[static_cast<size_t>(p * channels + c)];
            sum += value, squares += value * value;
        }
    }
    const double count = pixels * channels / groups, mean = sum / count;
    const double multiplier = 1.5 / std::sqrt(squares / count - mean * mean + 1e-6);
    CHECK(std::fabs(first[0] - multiplier) < 1e-6);
    CHECK(std::fabs(first[channels] - (0.5 - mean * multiplier)) < 1e-6);
}

namespace {

// Results of ops whose result is codes or floats, each followed by a product.
struct Codes {
    static constexpr int64_t kRows = 277, kWidth = 384, kOut = 40;
    explicit Codes(Backend& b, DType weight_type) : backend(b) {
        CHECK_OK(Arena::create(backend, 64 << 20, &arena));
        x = floats(kRows, 2 * kWidth, 1), row = floats(1, kWidth, 2);
        x.row(7)[5] = NAN;
        for (int64_t c = 0; c < kWidth; ++c)
            x.row(9)[c] = 0; // a norm of zeros, a gate of zeros
        CHECK_OK(arena->allocate(kRows, kOut, &y));
        weight = packed(weight_type, kOut, kWidth);
    }
    Tensor floats(int64_t rows, int64_t cols, unsigned seed) {
        Tensor t;
        CHECK_OK(arena->allocate(rows, cols, &t));
        const std::vector<float> values =
            random_values(static_cast<size_t>(rows) * static_cast<size_t>(cols), seed);
        CHECK_OK(backend.write(t, values.data()));
        return t;
    }
    Tensor packed(DType dtype, int64_t rows, int64_t cols) {
        const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(cols);
        weights.emplace_back(static_cast<size_t>(rows) * row_bytes(dtype, cols));
        CHECK_OK(quantize_rows(dtype, random_values(count, 5).data(), rows, cols,
                               weights.back().data()));
        return {dtype, rows, cols, cols, weights.back().data()};
    }
    // What the product makes of the op's result, written as `dtype`: of 12 rows, and of the rest.
    std::vector<float> result(DType dtype, const std::function<Status(const Tensor& out)>& op) {
        Tensor out;
        CHECK_OK(arena->allocate(kRows, kWidth + kGroup, dtype, &out));
        const Tensor part = out.slice_cols(kGroup, kWidth);
        CHECK_OK(op(part));
        CHECK_OK(backend.linear(linear_args(part.slice_rows(0, 12), weight, y.slice_rows(0, 12))));
        CHECK_OK(backend.linear(
            linear_args(part.slice_rows(12, kRows - 12), weight, y.slice_rows(12, kRows - 12))));
        arena->release(&out);
        return {y.row(0), y.row(0) + kRows * kOut};
    }
    std::vector<std::vector<float>> results(DType dtype) {
        std::vector<std::vector<float>> all;
        const Tensor left = x.slice_cols(0, kWidth), right = x.slice_cols(kWidth, kWidth);
        all.push_back(result(dtype, [&](const Tensor& out) {
            return backend.layer_norm({left, row, row, out, 1e-6f});
        }));
        all.push_back(
            result(dtype, [&](const Tensor& out) { return backend.swiglu({left, right, out}); }));
        for (const int head_dim : {32, 96, 128})
            all.push_back(result(dtype, [&](const Tensor& out) {
                AttentionArgs args;
                args.q = left, args.k = args.v = right, args.out = out;
                args.heads = args.kv_heads = static_cast<int>(kWidth) / head_dim;
                args.head_dim = head_dim;
                args.scale = 0.1f;
                return backend.attention(args);
            }));
        return all;
    }
    // An MLP whose gate and up are stored, or not.
    std::vector<float> mlp(bool stored) {
        Tensor codes, hidden;
        CHECK_OK(arena->allocate(kRows, kWidth, DType::kI8, &codes));
        CHECK_OK(arena->allocate(kRows, 2 * kWidth, &hidden));
        CHECK_OK(backend.layer_norm({x.slice_cols(0, kWidth), row, row, codes, 1e-6f}));
        const Tensor in = packed(weight.dtype, 2 * kWidth, kWidth);
        const std::vector<float> out = result(DType::kI8, [&](const Tensor& to) {
            LinearArgs args = linear_args(codes, in, stored ? hidden : to);
            args.projections[0].activate = !stored;
            const Status status = backend.linear(args);
            if (!status.ok() || !stored) return status;
            return backend.swiglu(
                {hidden.slice_cols(0, kWidth), hidden.slice_cols(kWidth, kWidth), to});
        });
        arena->release(&codes);
        arena->release(&hidden);
        return out;
    }

    Backend& backend;
    std::unique_ptr<Arena> arena;
    Tensor x, row, y, weight;
    std::vector<std::vector<uint8_t>> weights;
};

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

} // namespace

// What an op writes as codes gives the products, bit for bit, that its floats give, whatever the
// number of threads; NaN shows.
TEST(codes_are_those_the_product_would_make) {
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
        for (const DType dtype : {DType::kPTQ1_0, DType::kQ1_0, DType::kQ8_0, DType::kQ4_0}) {
            std::vector<std::vector<float>> first;
            std::vector<float> first_mlp;
            for (const int threads : {1, 7}) {
                std::unique_ptr<Backend> device;
                CHECK_OK(cpu::CpuBackend::create({threads, Precision::kFast}, level, &device));
                Codes codes(*device, dtype);
                const auto floats = codes.results(DType::kF32), found = codes.results(DType::kI8);
                if (first.empty()) first = floats, first_mlp = codes.mlp(true);
                for (size_t i = 0; i < found.size(); ++i) {
                    CHECK(same_bytes(found[i], floats[i]) && same_bytes(found[i], first[i]));
                    CHECK(std::isnan(found[i][7 * Codes::kOut]));
                }
                CHECK(same_bytes(codes.mlp(true), first_mlp));
                CHECK(same_bytes(codes.mlp(false), first_mlp));
            }
        }
    }
}

// Every level must bring kernels of its own, or its name would promise what it does not hold.
TEST(levels_differ_from_those_below) {
    for (const cpu::LevelInfo& info : cpu::level_list()) {
        if (info.level == cpu::Level::kGeneric) continue;
        if (!cpu::supports(cpu::detected_features(), info.level)) {
            std::printf("skipped: this processor lacks the level %s\n", info.name);
            continue;
        }
        const cpu::KernelTable &mine = cpu::kernel_table(info.level),
                               &below = cpu::kernel_table(info.below);
        CHECK(std::strcmp(mine.level, info.name) == 0);
        CHECK(mine.linear_fast != below.linear_fast);
        if (info.below != cpu::Level::kGeneric) continue;
        CHECK(mine.linear_exact != below.linear_exact);
        CHECK(mine.quantize_rows != below.quantize_rows &&
              mine.dequantize_row != below.dequantize_row);
        CHECK(mine.attention != below.attention && mine.conv2d != below.conv2d &&
              mine.group_sums != below.group_sums);
        CHECK(mine.rms_norm != below.rms_norm && mine.layer_norm != below.layer_norm);
        CHECK(mine.head_norm_rope != below.head_norm_rope && mine.swiglu != below.swiglu);
    }
}

TEST(features_decide_the_levels) {
    CHECK(cpu::levels_of(0) == std::vector<cpu::Level>{cpu::Level::kGeneric});
    CHECK(cpu::best_level(0) == cpu::Level::kGeneric);
    cpu::Level best;
    CHECK_OK(cpu::choose_level(~0u, nullptr, &best));
    CHECK(best == cpu::best_level(~0u));
    for (const cpu::LevelInfo& info : cpu::level_list()) {
        cpu::Level level;
        CHECK_OK(cpu::choose_level(~0u, info.name, &level));
        CHECK(level == info.level);
        if (info.level == cpu::Level::kGeneric) continue;
        // One missing bit hides the level, however it is asked for.
        for (uint32_t bit = 1; bit != 0; bit <<= 1)
            if (info.needs & bit)
                CHECK_FAILS(cpu::choose_level(~bit, info.name, &level), ErrorCode::kUnsupported,
                            info.name);
        CHECK_FAILS(cpu::choose_level(0, info.name, &level), ErrorCode::kUnsupported, "generic");
        CHECK(!cpu::supports(0, info.level));
    }
}

TEST(the_environment_forces_a_level) {
    std::unique_ptr<Backend> out;
    setenv("BONSAI_CPU", "generic", 1);
    CHECK_OK(create_backend("cpu", {1, Precision::kFast}, &out));
    CHECK(out->device().features == "generic");
    setenv("BONSAI_CPU", "z80", 1);
    CHECK_FAILS(create_backend("cpu", {1, Precision::kFast}, &out), ErrorCode::kArgument, "z80");
    unsetenv("BONSAI_CPU");
}
