// SPDX-License-Identifier: Apache-2.0
// The CPU backend around the kernels: results do not depend on the thread count, weights are never
// expanded beyond a tile, and the level can be forced.
#include "backends/cpu/backend.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

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
    CHECK_OK(cpu::CpuBackend::create({threads, precision}, cpu::detected_level(), &out));
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
            LinearArgs args;
            args.x = f32_matrix(x.data(), rows, in);
            args.projections[0].weight = {dtype, out_features, in, in, packed.data()};
            args.projections[0].out = f32_matrix(y.data(), rows, out_features);
            args.count = 1;
            CHECK_OK(cpu->linear(args));
            const size_t peak = static_cast<cpu::CpuBackend&>(*cpu).scratch_peak();
            CHECK(peak > 0 && peak <= limit);
        }
    }
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

TEST(levels_differ_from_generic) {
    const cpu::KernelTable& generic = cpu::kernel_table(cpu::Level::kGeneric);
    if (cpu::detected_level() == cpu::Level::kGeneric) {
        std::printf("skipped: this processor has the generic level only\n");
        return;
    }
    const cpu::KernelTable& best = cpu::kernel_table(cpu::detected_level());
    CHECK(best.linear_exact != generic.linear_exact && best.linear_fast != generic.linear_fast);
    CHECK(best.quantize_rows != generic.quantize_rows &&
          best.dequantize_row != generic.dequantize_row);
    CHECK(best.attention != generic.attention && best.conv2d != generic.conv2d &&
          best.group_sums != generic.group_sums);
    CHECK(best.rms_norm != generic.rms_norm && best.layer_norm != generic.layer_norm);
    CHECK(best.head_norm_rope != generic.head_norm_rope && best.swiglu != generic.swiglu);
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
