// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-cuda-ops: what a step does beside its products, attention at the shapes of
// transformer, text encoder and VAE, and the convolutions and group norms of a decoded picture.
// Random operands; medians of CUDA events around one op each, the rounding of its operands
// included.
//   bonsai-bench-cuda-ops [repeats [step|attention|vae]]
#include <cmath>
#include <cstring>
#include <string>

#include "backends/cuda/kernels.h"
#include "bench_cuda.h"
#include "core/half.h"

using namespace cuda_bench;

namespace {

using Op = std::function<Status()>;

struct OpBench : Bench {
    using Bench::Bench;
    std::vector<void*> matrices; // of the present case

    // In [-1, 1).
    float uniform() { return static_cast<float>(bits() >> 40) / (1 << 23) - 1; }
    // f32, f16 or bf16. Large ones repeat the first kPeriod numbers, a prime, so that no two rows
    // are alike.
    Tensor matrix(DType dtype, int64_t rows, int64_t cols) {
        constexpr size_t kPeriod = 1048573;
        const size_t width = dtype_info(dtype).bytes, count = static_cast<size_t>(rows * cols);
        const size_t first = std::min(count, kPeriod);
        std::vector<uint8_t> bytes(first * width);
        for (size_t i = 0; i < first; ++i) {
            const float value = uniform();
            const uint32_t stored = dtype == DType::kF32   ? f32_bits(value)
                                    : dtype == DType::kF16 ? f32_to_f16(value)
                                                           : f32_to_bf16(value);
            std::memcpy(&bytes[i * width], &stored, width); // little-endian
        }
        Tensor t{dtype, rows, cols, cols, nullptr};
        require(cudaMalloc(&t.data, count * width + 1024), "cudaMalloc");
        matrices.push_back(t.data);
        for (size_t i = 0; i < count; i += first)
            require(cudaMemcpy(static_cast<uint8_t*>(t.data) + i * width, bytes.data(),
                               std::min(first, count - i) * width, cudaMemcpyHostToDevice),
                    "copy");
        return t;
    }
    void drop() {
        for (void* data : matrices)
            cudaFree(data);
        matrices.clear();
    }
    // Median milliseconds of one op.
    double time(const Op& op) {
        return median([&] {
            scratch->reset();
            require(op());
        });
    }
};

// An I8 matrix with a scale for `group` columns.
Tensor codes(OpBench& bench, int64_t rows, int64_t cols, int group) {
    Tensor t{DType::kI8, rows, cols, cols, nullptr};
    t.data = bench.matrix(DType::kF16, rows, cols / 2).data;
    t.scale_stride = scale_stride_of(rows);
    t.scales = bench.matrix(DType::kF32, scale_groups(cols, group), t.scale_stride).f32();
    t.scale_group = group;
    return t;
}

// Microseconds of one op within a graph that runs `ops` again and again, as a step does: gaps
// between kernels included, the host's time for a launch not.
double in_graph(OpBench& bench, const std::vector<Op>& ops) {
    constexpr size_t kRuns = 24;
    const auto run = [&](size_t i) {
        bench.scratch->reset();
        require(ops[i % ops.size()]());
    };
    for (size_t i = 0; i < 3; ++i)
        run(i);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require(cudaStreamBeginCapture(bench.context.stream, cudaStreamCaptureModeRelaxed), "capture");
    for (size_t i = 0; i < kRuns; ++i)
        run(i);
    require(cudaStreamEndCapture(bench.context.stream, &graph), "capture");
    require(cudaGraphInstantiate(&executable, graph, 0), "graph");
    const double ms = bench.time(
        [&] { return check(cudaGraphLaunch(executable, bench.context.stream), "graph"); });
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    return ms * 1e3 / kRuns;
}

// An op that only moves memory, its operands in the L2 cache as far as they fit, and, with several
// sets of operands in turn, not there.
void report(OpBench& bench, const char* what, int64_t tokens, int64_t bytes,
            const std::function<Op()>& make) {
    std::vector<Op> ops = {make()};
    const double near = in_graph(bench, ops);
    while (static_cast<int64_t>(ops.size()) * bytes < 200000000)
        ops.push_back(make());
    const double far = in_graph(bench, ops);
    const double floor = static_cast<double>(bytes) / 4e6;
    std::printf("%-28s %5lld tokens  floor at 4 TB/s %5.1f us, from L2 %5.1f us, from memory %5.1f "
                "us (%2.0f %%)\n",
                what, static_cast<long long>(tokens), floor, near, far, 100 * floor / far);
}

// Width 3072, MLP 9216, 24 heads of 128; `group` columns a scale.
void bench_step(OpBench& bench, int64_t tokens, int group) {
    const int64_t width = 3072, mlp = 9216;
    const Tensor row = bench.matrix(DType::kF32, 1, width);
    report(bench, "norm, f32 to I8", tokens, tokens * width * 5, [&]() -> Op {
        const Tensor x = bench.matrix(DType::kF32, tokens, width),
                     h = codes(bench, tokens, width, group);
        return [=, &bench] { return cuda::layer_norm(bench.context, {x, row, row, h, 1e-6f}); };
    });
    report(bench, "SwiGLU, f16 to I8", tokens, tokens * mlp * 5, [&]() -> Op {
        const Tensor hidden = bench.matrix(DType::kF16, tokens, 2 * mlp),
                     out = codes(bench, tokens, width + mlp, group).slice_cols(width, mlp);
        return [=, &bench] {
            return cuda::swiglu(bench.context,
                                {hidden.slice_cols(0, mlp), hidden.slice_cols(mlp, mlp), out});
        };
    });
    bench.drop();
    HeadNormRopeArgs rope;
    rope.gain = rope.also_gain = bench.matrix(DType::kF32, 1, 128);
    rope.cos = bench.matrix(DType::kF32, tokens, 64);
    rope.sin = bench.matrix(DType::kF32, tokens, 64);
    rope.head_dim = 128, rope.eps = 1e-6f;
    report(bench, "head norm, rotation, q and k", tokens, tokens * width * 8, [&]() -> Op {
        const Tensor qkv = bench.matrix(DType::kF16, tokens, 3 * width);
        HeadNormRopeArgs args = rope;
        args.x = qkv.slice_cols(0, width), args.also = qkv.slice_cols(width, width);
        return [=, &bench] { return cuda::head_norm_rope(bench.context, args); };
    });
    report(bench, "quantise, f16 to I8", tokens, tokens * width * 3, [&]() -> Op {
        const Tensor halves = bench.matrix(DType::kF16, tokens, width),
                     out = codes(bench, tokens, width + mlp, group).slice_cols(0, width);
        return [=, &bench] { return quantize_rows(bench.context, halves, quantized_rows(out)); };
    });
    bench.drop();
    const Tensor qkv = bench.matrix(DType::kF16, tokens, 3 * width);
    AttentionArgs args;
    args.q = qkv.slice_cols(0, width), args.k = qkv.slice_cols(width, width);
    args.v = qkv.slice_cols(2 * width, width);
    args.out = codes(bench, tokens, width + mlp, group).slice_cols(0, width);
    args.heads = args.kv_heads = 24, args.head_dim = 128, args.scale = 0.0883883f;
    const double us = in_graph(bench, {[&] { return cuda::attention(bench.context, args); }});
    std::printf("attention to I8, groups of %d   %5lld tokens  %6.1f us, %5.1f TFLOP/s\n", group,
                static_cast<long long>(tokens), us,
                4 * static_cast<double>(tokens * tokens * width) / us * 1e-6);
    bench.drop();
}

void bench_attention(OpBench& bench, DType type, int64_t tokens, int heads, int kv_heads, int dim,
                     bool causal) {
    const int64_t width = int64_t{heads} * dim, kv_width = int64_t{kv_heads} * dim;
    const Tensor qkv = bench.matrix(type, tokens, width + 2 * kv_width);
    AttentionArgs args;
    args.q = qkv.slice_cols(0, width), args.k = qkv.slice_cols(width, kv_width);
    args.v = qkv.slice_cols(width + kv_width, kv_width);
    args.out = bench.matrix(DType::kF32, tokens, width);
    args.heads = heads, args.kv_heads = kv_heads, args.head_dim = dim, args.causal = causal;
    args.scale = 1 / std::sqrt(static_cast<float>(dim));
    const double ms = bench.time([&] { return cuda::attention(bench.context, args); });
    const double pairs = static_cast<double>(tokens * tokens) * (causal ? 0.5 : 1.0);
    std::printf("attention %s %5lld tokens, %2d heads of %3d%s  %8.1f us %6.1f TFLOP/s\n",
                dtype_info(type).name, static_cast<long long>(tokens), heads, dim,
                causal ? ", causal" : "        ", ms * 1e3,
                4 * pairs * static_cast<double>(width) / ms * 1e-9);
    bench.drop();
}

struct Conv {
    int64_t in, out;
    int kernel;
    bool upsample, activated, add;
    int count;
};

// Milliseconds of all `count`.
double bench_conv(OpBench& bench, int64_t side, const Conv& c) {
    const int64_t pixels = side * side * (c.upsample ? 4 : 1), cols = c.in * c.kernel * c.kernel;
    Conv2dArgs args;
    args.x = bench.matrix(DType::kF32, side * side, c.in);
    args.weight = bench.matrix(DType::kBF16, c.out, cols);
    args.bias = bench.matrix(DType::kF32, 1, c.out);
    if (c.activated) args.affine = bench.matrix(DType::kF32, 2, c.in);
    args.out = bench.matrix(DType::kF32, pixels, c.out);
    if (c.add) args.add = args.out;
    args.height = args.width = side;
    args.kernel = c.kernel, args.upsample = c.upsample;
    const double ms = bench.time([&] { return cuda::conv2d(bench.context, args); });
    std::printf("conv2d %4lld^2 %3lld -> %3lld, %dx%d%s%s%s  %8.1f us %6.1f TFLOP/s, %d times\n",
                static_cast<long long>(side), static_cast<long long>(c.in),
                static_cast<long long>(c.out), c.kernel, c.kernel, c.upsample ? ", doubled" : "",
                c.activated ? ", activated" : "", c.add ? ", add" : "", ms * 1e3,
                2.0 * static_cast<double>(pixels * c.out * cols) / ms * 1e-9, c.count);
    bench.drop();
    return ms * c.count;
}

double bench_norm(OpBench& bench, int64_t side, int64_t channels, int count) {
    GroupNormArgs args;
    args.x = bench.matrix(DType::kF32, side * side, channels);
    args.gain = args.bias = bench.matrix(DType::kF32, 1, channels);
    args.affine = bench.matrix(DType::kF32, 2, channels);
    args.groups = 32, args.eps = 1e-6f;
    const double ms = bench.time([&] { return cuda::group_norm(bench.context, args); });
    std::printf("group_norm %4lld^2 x %3lld  %8.1f us %6.0f GB/s, %d times\n",
                static_cast<long long>(side), static_cast<long long>(channels), ms * 1e3,
                static_cast<double>(side * side * channels) * 4e-6 / ms, count);
    bench.drop();
    return ms * count;
}

// Decoder of widths 512, 512, 256, 128 with three blocks each; `side` of its latents.
void bench_vae(OpBench& bench, int64_t side) {
    constexpr int64_t kWidths[] = {512, 512, 256, 128};
    double total = bench_conv(bench, side, {32, 512, 3, false, false, false, 1});
    total += bench_conv(bench, side, {512, 512, 3, false, true, false, 2}); // the middle
    total += bench_conv(bench, side, {512, 512, 3, false, true, true, 2});
    total += bench_norm(bench, side, 512, 5);
    int64_t in = 512, at = side;
    for (int level = 0; level < 4; ++level) {
        const int64_t out = kWidths[level];
        const int same = in == out ? 3 : 2;
        if (in != out) {
            total += bench_conv(bench, at, {in, out, 3, false, true, false, 1});
            total += bench_conv(bench, at, {in, out, 1, false, false, false, 1});
            total += bench_norm(bench, at, in, 1);
        }
        total += bench_conv(bench, at, {out, out, 3, false, true, false, same});
        total += bench_conv(bench, at, {out, out, 3, false, true, true, 3});
        total += bench_norm(bench, at, out, same + 3);
        if (level < 3) {
            total += bench_conv(bench, at, {out, out, 3, true, false, false, 1});
            at *= 2;
        }
        in = out;
    }
    total += bench_norm(bench, at, 128, 1);
    total += bench_conv(bench, at, {128, 3, 3, false, true, false, 1});
    std::printf("convolutions and norms of a picture of %lld^2: %.2f ms\n",
                static_cast<long long>(at), total);
}

} // namespace

int main(int argc, char** argv) {
    OpBench bench(argc, argv);
    std::printf("%s\n", bench.info.name.c_str());
    const std::string part = argc > 2 ? argv[2] : "";
    if (part.empty() || part == "step")
        for (const int group : {kGroup, 2 * kGroup, kWideGroup})
            for (const int64_t tokens : {512, 1024, 1536, 4608})
                bench_step(bench, tokens, group);
    if (part.empty() || part == "attention") {
        for (const int64_t tokens : {768, 1536, 4608})
            for (const DType type : {DType::kF32, DType::kF16})
                bench_attention(bench, type, tokens, 24, 24, 128, false);
        bench_attention(bench, DType::kF32, 512, 32, 8, 128, true);
        for (const int64_t tokens : {4096, 16384})
            bench_attention(bench, DType::kF32, tokens, 1, 1, 512, false);
    }
    if (part.empty() || part == "vae")
        for (const int64_t side : {64, 128})
            bench_vae(bench, side);
    return 0;
}
