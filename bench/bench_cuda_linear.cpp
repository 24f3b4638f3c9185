// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-cuda-linear: rates of the CUDA backend's matrix products at the transformer's and
// the encoder's shapes. Random weights and activations; medians of CUDA events around one launch
// each.
//   bonsai-bench-cuda-linear [repeats]
#include "bench_cuda_linear.h"

#include "backends/cuda/linear_half.h"

using namespace cuda_bench;

namespace {

// Largest difference of two device buffers, relative to the second's root mean square.
double difference(const void* a, const void* b, size_t count) {
    std::vector<float> x(count), y(count);
    require(cudaMemcpy(x.data(), a, count * 4, cudaMemcpyDeviceToHost), "copy");
    require(cudaMemcpy(y.data(), b, count * 4, cudaMemcpyDeviceToHost), "copy");
    double largest = 0, squares = 0;
    for (size_t i = 0; i < count; ++i) {
        const double d = std::fabs(static_cast<double>(x[i]) - static_cast<double>(y[i]));
        largest = d <= largest ? largest : d; // a NaN stays
        squares += static_cast<double>(y[i]) * static_cast<double>(y[i]);
    }
    return largest / std::sqrt(squares / static_cast<double>(count));
}

// Columns of the products in 16-bit floats, beside those of pairs of bf16 in mma.sync, which `out`
// holds and `other` takes.
void run_half(Bench& bench, LinearArgs args, DType dtype, Matrix& out, Matrix& other,
              double operations) {
    const Context& context = bench.context;
    if (!linear_half_serves(context, args, dtype, args.exact)) return;
    const auto elements = static_cast<size_t>(args.x.rows * args.projections[0].weight.rows);
    bench.scratch->reset();
    HalfRows half;
    const HalfKind kind = half_kind(dtype, args.exact);
    require(half_rows(context, args.x, kind, &half)); // what the scratch has to hold
    require(linear_half(context, half, args, 1));
    const double rows = bench.median([&] {
        bench.scratch->reset();
        require(half_rows(context, args.x, kind, &half));
    });
    args.projections[0].out.data = out.data;
    require(cudaMemsetAsync(out.data, 255, elements * 4, context.stream), "memset");
    const double product = bench.median([&] {
        bench.scratch->reset();
        require(half_rows(context, args.x, kind, &half));
        require(linear_half(context, half, args, 1));
    });
    args.projections[0].out.data = other.data;
    const double mma = bench.median([&] {
        bench.scratch->reset();
        require(linear_exact(context, args, 1));
    });
    const auto rate = [&](double ms) { return operations / ms * 1e-9; };
    std::printf("  rows %6.3f, half %6.1f, mma pairs %6.1f, difference %.1e", rows,
                rate(product - rows), rate(mma), difference(out.data, other.data, elements));
}

// Columns of the products of codes in mma.sync, and of making the codes.
void run_codes(Bench& bench, const LinearArgs& args, double operations) {
    const Context& context = bench.context;
    bench.scratch->reset();
    QuantizedRows q;
    require(allocate_quantized(context, args.x.rows, args.x.cols, kGroup, &q));
    const double quantize = bench.median([&] { require(quantize_rows(context, args.x, q)); });
    std::printf("  quantize %6.3f  mma", quantize);
    for (const int width : {64, 128}) {
        const double ms = bench.median([&] { require(linear_int8(context, q, args, 1, width)); });
        std::printf(" %d: %6.1f", width, operations / ms * 1e-9);
    }
}

void run_case(Bench& bench, DType dtype, int64_t m, int64_t n, int64_t k, bool exact) {
    const std::vector<uint8_t> packed = random_weight(bench, dtype, n, k);
    Tensor raw{dtype, n, k, k, nullptr};
    const DeviceWeight target = device_weight(raw);
    const auto elements = static_cast<size_t>(m * n);
    Matrix file(packed.size()), weight(target.bytes), folded(device_weight(raw, true).bytes),
        x(static_cast<size_t>(m * k) * 4), out(elements * 4), other(elements * 4);
    require(cudaMemcpy(file.data, packed.data(), packed.size(), cudaMemcpyHostToDevice), "copy");
    raw.data = file.data;
    if (target.repack) {
        require(repack_weight(bench.context.stream, raw, weight.data));
        require(repack_weight(bench.context.stream, raw, folded.data, true));
    }
    std::vector<float> values(static_cast<size_t>(m * k));
    for (float& v : values) {
        const uint64_t r = bench.bits();
        v = static_cast<float>((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF)) / 32768 - 3;
    }
    require(cudaMemcpy(x.data, values.data(), values.size() * 4, cudaMemcpyHostToDevice), "copy");
    LinearArgs args;
    args.x = f32_matrix(static_cast<float*>(x.data), m, k);
    args.projections[0].weight =
        Tensor{target.dtype, n, k, k, target.repack ? weight.data : file.data};
    args.projections[0].out = f32_matrix(static_cast<float*>(out.data), m, n);
    args.count = 1;
    args.exact = exact;
    const double operations =
        2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    const Context& context = bench.context;

    const Tensor plain = args.projections[0].weight;
    if (linear_folds(context, args) && is_low_bit(dtype))
        args.projections[0].weight.data = folded.data;
    bench.scratch->reset();
    const double whole = bench.median([&] {
        bench.scratch->reset();
        require(cuda::linear(context, args));
    });
    std::printf("%-7s %5s %5lld x %5lld x %5lld  linear %8.3f ms %7.1f", dtype_info(dtype).name,
                exact ? "exact" : "fast", static_cast<long long>(m), static_cast<long long>(n),
                static_cast<long long>(k), whole, operations / whole * 1e-9);
    run_half(bench, args, target.dtype, out, other, operations);
    args.projections[0].weight = plain;
    if (!exact) run_codes(bench, args, operations);
    std::printf("\n");
    std::fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
    Bench bench(argc, argv);
    std::printf("%s, %d multiprocessors; rates in T(FL)OP/s\n", bench.info.name.c_str(),
                bench.context.multiprocessors);
    if (linear_hopper_serves(bench.context, DType::kPQ2_0)) run_low_bit(bench);
    for (const DType dtype : {DType::kPQ2_0, DType::kQ1_0})
        run_case(bench, dtype, 1536, 9216, 3072, false);
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
        run_case(bench, dtype, 512, 19456, 2560, false); // gate and up
        run_case(bench, dtype, 512, 2560, 9728, false);
        run_case(bench, dtype, 512, 4096, 2560, false);
        run_case(bench, dtype, 512, 2560, 4096, false);
        run_case(bench, dtype, 64, 2048, 2560, false); // keys and values of a prompt
    }
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
        run_case(bench, dtype, 512, 9728, 2560, true);
        run_case(bench, dtype, 512, 2560, 9728, true);
    }
    for (const DType dtype :
         {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0, DType::kPQ2_0, DType::kQ1_0})
        run_case(bench, dtype, 512, 3072, 7680, true);
    run_case(bench, DType::kPQ2_0, 1536, 9216, 3072, true);
    run_case(bench, DType::kPQ2_0, 1536, 3072, 12288, true);
    run_case(bench, DType::kPQ2_0, 4608, 27648, 3072, true);
    run_case(bench, DType::kF16, 1024, 128, 3072, true);
    run_case(bench, DType::kF16, 1024, 3072, 128, true);
    run_case(bench, DType::kBF16, 4, 18432, 3072, true);
    run_case(bench, DType::kQ8_0, 4, 18432, 3072, true);
    return 0;
}
