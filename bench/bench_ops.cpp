// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-ops: speed of the CPU kernels on one core, beside the ceiling of that core measured
// in the same run.
//
//     bonsai-bench-ops [--level name] [--repeat n] [text that the row must contain]
//
// Times are CPU time of this thread, so that other programs disturb them little; a run of the
// ceiling loop before each measurement takes the clock rate of the moment into account. One
// operation (OP) is a multiplication or an addition. Exact products of few rows are given in GB/s
// of packed weights, beside what the core reads from memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "backends/cpu/features.h"
#include "backends/cpu/table.h"
#include "ceilings.h"
#include "core/quantize.h"

using namespace bonsai;
using namespace bonsai::cpu;
using bonsai::bench::Ceiling;
using bonsai::bench::ceiling;

namespace {

struct Options {
    Level level = levels_of(detected_features()).back();
    int repeat = 7;
    const char* filter = "";
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Runs `work` of `giga_ops`, and prints a row.
void measure(const Options& options, const std::string& name, double giga_ops, Ceiling kind,
             const std::function<void()>& work) {
    work();
    std::vector<double> speeds, ratios;
    for (int i = 0; i < options.repeat; ++i) {
        const double top = ceiling(kind);
        const double start = bench::thread_seconds();
        work();
        const double speed = giga_ops / (bench::thread_seconds() - start);
        speeds.push_back(speed);
        ratios.push_back(top > 0 ? 100 * speed / top : 0);
    }
    std::printf("| %-44s | %8.1f | %8.1f | %5.1f |\n", name.c_str(), median(speeds),
                *std::max_element(speeds.begin(), speeds.end()), median(ratios));
    std::fflush(stdout);
}

// Four rows of packed random values, repeated.
std::vector<uint8_t> random_weight(DType dtype, int64_t rows, int64_t cols) {
    std::vector<float> x(static_cast<size_t>(cols) * 4);
    uint32_t state = 1;
    for (float& v : x) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    }
    const size_t bytes = row_bytes(dtype, cols);
    std::vector<uint8_t> four(bytes * 4), packed(bytes * static_cast<size_t>(rows));
    if (!quantize_rows(dtype, x.data(), 4, cols, four.data()).ok()) std::abort();
    for (int64_t r = 0; r < rows; ++r)
        std::memcpy(&packed[bytes * static_cast<size_t>(r)],
                    &four[bytes * static_cast<size_t>(r % 4)], bytes);
    return packed;
}

// Activations, also as int8.
struct Input {
    Input(const KernelTable& table, int64_t rows, int64_t cols)
        : x(static_cast<size_t>(rows * cols)), memory(quantized_rows_bytes(rows, cols) + 64) {
        for (size_t i = 0; i < x.size(); ++i)
            x[i] = static_cast<float>(i % 251) * 0.01f - 1.25f;
        const uintptr_t at = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
        floats = f32_matrix(x.data(), rows, cols);
        codes = quantized_rows_at(reinterpret_cast<void*>(at), rows, cols);
        table.quantize_rows(floats, codes, {0, rows});
    }
    std::vector<float> x;
    std::vector<uint8_t> memory;
    Tensor floats;
    QuantizedRows codes;
};

struct LinearCase {
    const char* what;
    int64_t rows;
    int64_t in;
    int64_t out; // measured columns; the layer has more, which cost the same
};

void bench_linear(const Options& options, const KernelTable& table, const LinearCase& c,
                  DType dtype, bool fast) {
    const std::string name = std::string("linear ") + (fast ? "fast " : "exact ") +
                             dtype_info(dtype).name + " " + c.what + " " + std::to_string(c.rows) +
                             "x" + std::to_string(c.in);
    if (name.find(options.filter) == std::string::npos) return;
    const Input input(table, c.rows, c.in);
    std::vector<float> out(static_cast<size_t>(c.rows * c.out));
    std::vector<uint8_t> weight = random_weight(dtype, c.out, c.in);
    Projection p;
    p.weight = Tensor{dtype, c.out, c.in, c.in, weight.data()};
    p.out = f32_matrix(out.data(), c.rows, c.out);
    Scratch scratch;
    const double ops =
        2.0 * static_cast<double>(c.rows) * static_cast<double>(c.in) * static_cast<double>(c.out);
    // Few rows are bound by reading the weights: GB/s of those.
    const bool few = !fast && c.rows <= 8;
    const Ceiling kind = fast ? Ceiling::kBytes : few ? Ceiling::kMemory : Ceiling::kFloats;
    const double work = few ? static_cast<double>(weight.size()) : ops;
    measure(options, few ? name + " GB/s" : name, work * 1e-9, kind, [&] {
        const PieceSize piece = table.linear_piece(dtype);
        for (int64_t n = 0; n < c.out; n += piece.cols) {
            const Range cols = {n, std::min(c.out, n + piece.cols)};
            for (int64_t m = 0; m < c.rows; m += piece.rows) {
                const Range rows = {m, std::min(c.rows, m + piece.rows)};
                fast ? table.linear_fast(input.codes, p, rows, cols, scratch)
                     : table.linear_exact(input.floats, p, rows, cols, scratch);
            }
        }
    });
}

void bench_linears(const Options& options, const KernelTable& table) {
    const LinearCase cases[] = {
        {"dit qkv+mlp", 1536, 3072, 768}, {"dit out", 1536, 12288, 768},
        {"encoder ffn", 512, 2560, 128},  {"encoder down", 512, 9728, 64},
        {"prompt", 77, 2560, 256},        {"modulation", 1, 3072, 18432},
        {"modulation", 4, 3072, 18432},   {"modulation", 8, 3072, 18432},
    };
    for (const LinearCase& c : cases)
        for (int t = 0; t < kDTypeCount; ++t) {
            const auto dtype = static_cast<DType>(t);
            if (is_block_quantized(dtype)) bench_linear(options, table, c, dtype, true);
            bench_linear(options, table, c, dtype, false);
        }
}

void bench_quantize(const Options& options, const KernelTable& table) {
    if (std::strstr("quantize_rows", options.filter) == nullptr) return;
    const Input input(table, 512, 3072);
    // Two operations an element: one for the maximum, one for the product.
    measure(options, "quantize_rows 512x3072", 2e-9 * 512 * 3072, Ceiling::kFloats,
            [&] { table.quantize_rows(input.floats, input.codes, {0, 512}); });
}

std::vector<float> random_floats(int64_t count) {
    std::vector<float> x(static_cast<size_t>(count));
    uint32_t state = 1;
    for (float& v : x) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    }
    return x;
}

struct AttentionCase {
    const char* what;
    int64_t tokens;
    int head_dim;
    int64_t stride; // of the fused buffer that q, k and v are slices of
    bool causal;
};

// One head; operations of what a causal query sees.
void bench_attention(const Options& options, const KernelTable& table, const AttentionCase& c) {
    const std::string name = std::string("attention ") + c.what + " " + std::to_string(c.tokens) +
                             "x" + std::to_string(c.head_dim);
    if (name.find(options.filter) == std::string::npos) return;
    std::vector<float> fused = random_floats(c.tokens * c.stride);
    std::vector<float> out(static_cast<size_t>(c.tokens * c.head_dim));
    AttentionArgs args;
    args.q = Tensor{DType::kF32, c.tokens, c.head_dim, c.stride, fused.data()};
    args.k = Tensor{DType::kF32, c.tokens, c.head_dim, c.stride, fused.data() + c.stride / 3};
    args.v = Tensor{DType::kF32, c.tokens, c.head_dim, c.stride, fused.data() + c.stride / 3 * 2};
    args.out = f32_matrix(out.data(), c.tokens, c.head_dim);
    args.heads = args.kv_heads = 1;
    args.head_dim = c.head_dim;
    args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    args.causal = c.causal;
    const auto tokens = static_cast<double>(c.tokens);
    const double ops = (c.causal ? 2.0 : 4.0) * tokens * tokens * c.head_dim;
    Scratch scratch;
    measure(options, name, ops * 1e-9, Ceiling::kFloats, [&] {
        for (int64_t i = 0; i < c.tokens; i += table.attention_piece_rows)
            table.attention(args, 0, {i, std::min(c.tokens, i + table.attention_piece_rows)},
                            scratch);
    });
    if (c.causal || !table.attention_fast) return;
    Scratch memory;
    auto* packed =
        static_cast<float*>(memory.get(table.attention_packed_floats(args) * sizeof(float)));
    measure(options, name + " fast", ops * 1e-9, Ceiling::kFloats, [&] {
        const int64_t piece = table.attention_fast_piece_rows, block = table.attention_pack_rows;
        table.attention_pack(args, {0, (c.tokens + block - 1) / block}, packed);
        for (int64_t i = 0; i < c.tokens; i += piece)
            table.attention_fast(args, packed, 0, {i, std::min(c.tokens, i + piece)}, scratch);
    });
}

void bench_attentions(const Options& options, const KernelTable& table) {
    const AttentionCase cases[] = {
        {"dit 512", 1536, 128, 27648, false},   {"dit 1024", 4608, 128, 27648, false},
        {"dit double", 4608, 128, 3072, false}, {"encoder causal", 512, 128, 6144, true},
        {"vae mid", 4096, 512, 1536, false},
    };
    for (const AttentionCase& c : cases)
        bench_attention(options, table, c);
}

struct ConvCase {
    int64_t height, width, in, out;
    int kernel;
    bool upsample;
};

// With the folded GroupNorm, except where the model has none: before upsampling and in 1x1.
void bench_conv(const Options& options, const KernelTable& table, const ConvCase& c) {
    const std::string name = "conv2d " + std::to_string(c.kernel) + "x" + std::to_string(c.kernel) +
                             " " + std::to_string(c.in) + "->" + std::to_string(c.out) + " " +
                             std::to_string(c.width) + "x" + std::to_string(c.height) +
                             (c.upsample ? " doubled" : "");
    if (name.find(options.filter) == std::string::npos) return;
    const int64_t pixels = c.height * c.width * (c.upsample ? 4 : 1);
    const int64_t products = c.kernel * c.kernel * c.in;
    std::vector<float> x = random_floats(c.height * c.width * c.in), bias = random_floats(c.out);
    std::vector<float> affine = random_floats(2 * c.in), out(static_cast<size_t>(pixels * c.out));
    const std::vector<float> weight = random_floats(c.out * products);
    std::vector<uint8_t> packed(weight.size() * 2);
    if (!quantize_rows(DType::kF16, weight.data(), c.out, products, packed.data()).ok())
        std::abort();
    Conv2dArgs args;
    args.x = f32_matrix(x.data(), c.height * c.width, c.in);
    args.weight = Tensor{DType::kF16, c.out, products, products, packed.data()};
    args.bias = f32_matrix(bias.data(), 1, c.out);
    if (c.kernel == 3 && !c.upsample) args.affine = f32_matrix(affine.data(), 2, c.in);
    args.out = f32_matrix(out.data(), pixels, c.out);
    args.height = c.height;
    args.width = c.width;
    args.kernel = c.kernel;
    args.upsample = c.upsample;
    const int64_t rows = c.upsample ? 2 * c.height : c.height;
    const double ops = 2.0 * static_cast<double>(pixels) * static_cast<double>(c.out) *
                       static_cast<double>(products);
    Scratch scratch;
    measure(options, name, ops * 1e-9, Ceiling::kFloats, [&] {
        for (int64_t y = 0; y < rows; y += table.conv2d_piece_rows)
            table.conv2d(args, {y, std::min(rows, y + table.conv2d_piece_rows)}, scratch);
    });
    if (c.kernel != 3 || !table.winograd) return;
    Scratch weights;
    auto* transformed =
        static_cast<float*>(weights.get(table.winograd_weight_floats(args) * sizeof(float)));
    const int64_t width = c.upsample ? 2 * c.width : c.width;
    // Operations of the direct form, so that the rows compare; the weights' share is that of a
    // picture of this size.
    measure(options, name + " winograd", ops * 1e-9, Ceiling::kFloats, [&] {
        table.winograd_weights(args, {0, (c.out + table.winograd_panel - 1) / table.winograd_panel},
                               transformed);
        for (int64_t y = 0; y < (rows + 3) / 4; y += 8)
            for (int64_t x = 0; x < (width + 3) / 4; x += 8)
                table.winograd(args, transformed,
                               {y, x, std::min<int64_t>(8, (rows + 3) / 4 - y),
                                std::min<int64_t>(8, (width + 3) / 4 - x)},
                               scratch);
    });
}

void bench_convs(const Options& options, const KernelTable& table) {
    const ConvCase cases[] = {
        {64, 64, 32, 512, 3, false},   {16, 64, 512, 512, 3, false},
        {8, 64, 512, 512, 3, true},    {16, 128, 512, 256, 1, false},
        {16, 128, 256, 256, 3, false}, {128, 128, 256, 256, 3, false},
        {16, 512, 256, 128, 3, false}, {16, 512, 128, 128, 3, false},
        {16, 512, 96, 96, 3, false},   {16, 512, 128, 3, 3, false},
    };
    for (const ConvCase& c : cases)
        bench_conv(options, table, c);
}

bool parse(int argc, char** argv, Options* options) {
    for (int i = 1; i < argc; ++i) {
        const bool more = i + 1 < argc;
        if (std::strcmp(argv[i], "--level") == 0 && more &&
            !choose_level(detected_features(), argv[i + 1], &options->level).ok())
            return false;
        if (std::strcmp(argv[i], "--level") == 0 && more)
            ++i;
        else if (std::strcmp(argv[i], "--repeat") == 0 && more)
            options->repeat = std::max(1, std::atoi(argv[++i]));
        else if (argv[i][0] != '-')
            options->filter = argv[i];
        else
            return false;
    }
    return true;
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    if (!parse(argc, argv, &options)) {
        std::fprintf(stderr, "usage: bonsai-bench-ops [--level name] [--repeat n] [text]\n");
        return 2;
    }
    const KernelTable& table = kernel_table(options.level);
    std::printf("level %s, 1 thread, %d repeats; ceilings at the start: maddubs + add %.0f, fma "
                "%.0f GOP/s\n\n",
                table.level, options.repeat, ceiling(Ceiling::kBytes), ceiling(Ceiling::kFloats));
    std::printf("| %-44s | %8s | %8s | %5s |\n", "op", "GOP/s", "best", "% top");
    std::printf("|---|---|---|---|\n");
    bench_quantize(options, table);
    bench_linears(options, table);
    bench_attentions(options, table);
    bench_convs(options, table);
    return 0;
}
