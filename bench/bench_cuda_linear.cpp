// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-cuda-linear: rates of the CUDA backend's matrix products at the transformer's and
// the encoder's shapes. Random weights and activations; medians of CUDA events around one launch
// each.
//   bonsai-bench-cuda-linear [repeats]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "backends/cuda/linear.h"
#include "backends/cuda/linear_half.h"
#include "backends/cuda/memory.h"
#include "core/half.h"

using namespace bonsai;
using namespace bonsai::cuda;

namespace {

struct Bench {
    std::shared_ptr<Memory> memory;
    std::unique_ptr<Scratch> scratch;
    Context context;
    int repeats = 20;
    uint64_t random = 7;

    uint64_t bits() {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random;
    }
};

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
}
void require(cudaError_t code, const char* what) {
    require(check(code, what));
}

struct Matrix {
    void* data = nullptr;
    explicit Matrix(size_t bytes) { require(cudaMalloc(&data, bytes), "cudaMalloc"); }
    ~Matrix() { cudaFree(data); }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;
};

// Codes are random bytes, without the fourth code of two-bit types; scales 1 / 64, of low-bit types
// 1 / 128 to 1 / 32.
std::vector<uint8_t> random_weight(Bench& bench, DType dtype, int64_t rows, int64_t cols) {
    const DTypeInfo& info = dtype_info(dtype);
    std::vector<uint8_t> bytes(row_bytes(dtype, cols) * static_cast<size_t>(rows));
    if (!is_block_quantized(dtype)) {
        for (size_t i = 0; i < bytes.size(); i += info.bytes) {
            const float value = static_cast<float>(static_cast<int8_t>(bench.bits() >> 20)) / 4096;
            const uint32_t f32 = f32_bits(value), f16 = f32_to_f16(value);
            const uint32_t stored = dtype == DType::kF32   ? f32
                                    : dtype == DType::kF16 ? f16
                                                           : f32 >> 16;
            for (size_t b = 0; b < info.bytes; ++b)
                bytes[i + b] = static_cast<uint8_t>(stored >> 8 * b);
        }
        return bytes;
    }
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const uint64_t v = bench.bits();
        for (size_t b = 0; b < 8; ++b)
            bytes[i + b] = static_cast<uint8_t>(v >> 8 * b);
    }
    if (dtype == DType::kPQ2_0)
        for (uint8_t& byte : bytes)
            byte &= static_cast<uint8_t>(~((byte & byte << 1) & 0xAA));
    for (size_t i = 0; i < bytes.size(); i += info.bytes) {
        const uint64_t v = is_low_bit(dtype) ? bench.bits() : 0;
        bytes[i] = static_cast<uint8_t>(v >> 20);
        bytes[i + 1] = static_cast<uint8_t>(is_low_bit(dtype) ? 0x20 + (v >> 40) % 8 : 0x24);
        if (dtype == DType::kQ4_1) bytes[i + 2] = 0, bytes[i + 3] = 0xA4;
    }
    return bytes;
}

// Median milliseconds of one run.
double median(Bench& bench, const std::function<void()>& body) {
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin), "event");
    require(cudaEventCreate(&end), "event");
    std::vector<float> times;
    for (int i = -3; i < bench.repeats; ++i) {
        require(cudaEventRecord(begin, bench.context.stream), "event");
        body();
        require(cudaEventRecord(end, bench.context.stream), "event");
        require(cudaEventSynchronize(end), "event");
        float ms = 0;
        require(cudaEventElapsedTime(&ms, begin, end), "event");
        if (i >= 0) times.push_back(ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return static_cast<double>(times[times.size() / 2]);
}

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
    const double rows = median(bench, [&] {
        bench.scratch->reset();
        require(half_rows(context, args.x, kind, &half));
    });
    args.projections[0].out.data = out.data;
    require(cudaMemset(out.data, 255, elements * 4), "memset");
    const double product = median(bench, [&] {
        bench.scratch->reset();
        require(half_rows(context, args.x, kind, &half));
        require(linear_half(context, half, args, 1));
    });
    args.projections[0].out.data = other.data;
    const double mma = median(bench, [&] {
        bench.scratch->reset();
        require(linear_exact(context, args, 1));
    });
    const auto rate = [&](double ms) { return operations / ms * 1e-9; };
    std::printf("  rows %6.3f, half %6.1f, mma pairs %6.1f, difference %.1e", rows,
                rate(product - rows), rate(mma), difference(out.data, other.data, elements));
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
    const auto rate = [&](double ms) { return operations / ms * 1e-9; };
    const Context& context = bench.context;

    const Tensor plain = args.projections[0].weight;
    if (linear_folds(context, args) && is_low_bit(dtype))
        args.projections[0].weight.data = folded.data;
    bench.scratch->reset();
    const double whole = median(bench, [&] {
        bench.scratch->reset();
        require(cuda::linear(context, args));
    });
    std::printf("%-7s %5s %5lld x %5lld x %5lld  linear %8.3f ms %7.1f", dtype_info(dtype).name,
                exact ? "exact" : "fast", static_cast<long long>(m), static_cast<long long>(n),
                static_cast<long long>(k), whole, rate(whole));
    run_half(bench, args, target.dtype, out, other, operations);
    if (exact) {
        std::printf("\n");
        std::fflush(stdout);
        return;
    }
    bench.scratch->reset();
    QuantizedRows q;
    require(allocate_quantized(context, m, k, kGroup, &q));
    const double quantize = median(bench, [&] { require(quantize_rows(context, args.x, q)); });
    std::printf("  quantize %6.3f", quantize);
    args.projections[0].weight = plain;
    std::printf("  mma");
    for (const int width : {64, 128}) {
        const double ms = median(bench, [&] { require(linear_int8(context, q, args, 1, width)); });
        std::printf(" %d: %6.1f", width, rate(ms));
    }
    std::printf("\n");
    std::fflush(stdout);
}

// How a product's result is stored.
enum class Result { kF32, kF16, kAdded };

// Low-bit weights in wgmma: activations of one scale a token and 512 inputs, folded weights.
class LowBitCase {
  public:
    LowBitCase(Bench& bench, DType dtype, int64_t m, int64_t n, int64_t k, Result result)
        : bench_(bench), dtype_(dtype), m_(m), n_(n), k_(k), result_(result),
          groups_((k + kScaleInputs - 1) / kScaleInputs), scale_stride_(quantized_scale_stride(m)),
          packed_(random_weight(bench, dtype, n, k)), codes_(static_cast<size_t>(m * k)),
          scales_(static_cast<size_t>(groups_ * scale_stride_)) {
        quantize();
    }

    void run() {
        Tensor raw{dtype_, n_, k_, k_, nullptr};
        const DeviceWeight target = device_weight(raw, true);
        const auto elements = static_cast<size_t>(m_ * n_);
        Matrix file(packed_.size()), weight(target.bytes), codes(codes_.size()),
            scales(scales_.size() * 4), out(elements * 4), gate(static_cast<size_t>(n_) * 4);
        upload(file, packed_.data(), packed_.size());
        upload(codes, codes_.data(), codes_.size());
        upload(scales, scales_.data(), scales_.size() * 4);
        upload(gate, std::vector<float>(static_cast<size_t>(n_), 1.0f).data(),
               static_cast<size_t>(n_) * 4);
        raw.data = file.data;
        require(repack_weight(bench_.context.stream, raw, weight.data, true));
        QuantizedRows q;
        q.q = static_cast<int8_t*>(codes.data), q.scale = static_cast<float*>(scales.data);
        q.rows = m_, q.cols = q.stride = k_;
        q.scale_stride = scale_stride_, q.group = kScaleInputs;
        LinearArgs args;
        args.x = f32_matrix(nullptr, m_, k_);
        args.count = 1;
        Projection& p = args.projections[0];
        p.weight = Tensor{target.dtype, n_, k_, k_, weight.data};
        p.out = f32_matrix(static_cast<float*>(out.data), m_, n_);
        if (result_ == Result::kF16) p.out.dtype = DType::kF16;
        p.accumulate = result_ == Result::kAdded;
        if (p.accumulate) p.gate = f32_matrix(static_cast<float*>(gate.data), 1, n_);

        std::printf("%-5s %5lld x %5lld x %5lld %s", dtype_info(dtype_).name,
                    static_cast<long long>(m_), static_cast<long long>(n_),
                    static_cast<long long>(k_),
                    result_ == Result::kF32   ? "f32  "
                    : result_ == Result::kF16 ? "f16  "
                                              : "added");
        const HopperProduct product = {q, &args, 1};
        double best = 0;
        for (int tile = -1; tile < kHopperTileCount; ++tile) {
            require(cudaMemset(out.data, p.accumulate ? 0 : 255, elements * 4), "memset");
            require(cudaDeviceSynchronize(), "memset");
            require(linear_hopper(bench_.context, &product, 1, tile));
            require(cudaDeviceSynchronize(), "linear_hopper");
            const double error = check(out.data);
            const double ms =
                median(bench_, [&] { require(linear_hopper(bench_.context, &product, 1, tile)); });
            const double rate = 2e-9 * static_cast<double>(m_) * static_cast<double>(n_) *
                                static_cast<double>(k_) / ms;
            std::printf(tile < 0 ? " %7.4f ms %5.0f |" : " %5.0f", tile < 0 ? ms : rate, rate);
            if (!(error < (result_ == Result::kF16 ? 3e-3 : 1e-5))) std::printf("WRONG(%g)", error);
            if (tile >= 0) best = std::max(best, rate);
        }
        std::printf(" | best %5.0f, folding %.2g\n", best, folding_);
        std::fflush(stdout);
    }

  private:
    static constexpr int kScaleInputs = 512;

    static void upload(const Matrix& to, const void* from, size_t bytes) {
        require(cudaMemcpy(to.data, from, bytes, cudaMemcpyHostToDevice), "copy");
    }

    // Activations near a normal distribution.
    void quantize() {
        std::vector<float> row(static_cast<size_t>(k_));
        for (int64_t m = 0; m < m_; ++m) {
            for (float& v : row) {
                const uint64_t r = bench_.bits();
                v = static_cast<float>((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) +
                                       (r >> 48)) /
                        32768 -
                    4;
            }
            for (int64_t g = 0; g < groups_; ++g) {
                const int64_t begin = g * kScaleInputs, end = std::min(k_, begin + kScaleInputs);
                float largest = 0;
                for (int64_t i = begin; i < end; ++i)
                    largest = std::max(largest, std::fabs(row[static_cast<size_t>(i)]));
                scales_[static_cast<size_t>(g * scale_stride_ + m)] = largest / 127;
                for (int64_t i = begin; i < end; ++i)
                    codes_[static_cast<size_t>(m * k_ + i)] = static_cast<int8_t>(
                        std::lrintf(row[static_cast<size_t>(i)] * (127 / largest)));
            }
        }
    }

    float scale_of(int64_t n, int64_t group) const {
        const uint8_t* block = block_of(n, group);
        return f16_to_f32(static_cast<uint16_t>(block[0] | block[1] << 8));
    }
    const uint8_t* block_of(int64_t n, int64_t group) const {
        return packed_.data() + static_cast<size_t>(n) * row_bytes(dtype_, k_) +
               static_cast<size_t>(group) * dtype_info(dtype_).bytes;
    }
    int code_of(int64_t n, int64_t k) const {
        const uint8_t* block = block_of(n, k / kGroup) + 2;
        const auto i = static_cast<int>(k % kGroup);
        if (dtype_ == DType::kQ1_0) return (block[i >> 3] >> (i & 7) & 1) * 2 - 1;
        return (block[i >> 2] >> 2 * (i & 3) & 3) - 1;
    }

    // Largest difference of sampled elements from the rule in doubles, relative to their root mean
    // square; that of exact scales from the rule goes to folding_.
    double check(const void* device) {
        const size_t bytes = result_ == Result::kF16 ? 2 : 4;
        double largest = 0, squares = 0, folding = 0;
        constexpr int kSamples = 200;
        for (int i = 0; i < kSamples; ++i) {
            const auto m = static_cast<int64_t>(bench_.bits() >> 8) % m_;
            const auto n = static_cast<int64_t>(bench_.bits() >> 8) % n_;
            float s_max = 0;
            for (int64_t g = 0; g < k_ / kGroup; ++g)
                s_max = std::max(s_max, std::fabs(scale_of(n, g)));
            const float factor = s_max / 127;
            double rule = 0, exact = 0;
            for (int64_t g = 0; g < k_ / kGroup; ++g) {
                int sum = 0;
                for (int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k)
                    sum += codes_[static_cast<size_t>(m * k_ + k)] * code_of(n, k);
                const double x = static_cast<double>(
                    scales_[static_cast<size_t>(g * kGroup / kScaleInputs * scale_stride_ + m)]);
                const double scale = static_cast<double>(scale_of(n, g));
                rule += x * sum * static_cast<double>(factor) *
                        static_cast<double>(std::lrintf(scale_of(n, g) / factor));
                exact += x * sum * scale;
            }
            uint32_t bits = 0;
            require(cudaMemcpy(&bits,
                               static_cast<const uint8_t*>(device) +
                                   static_cast<size_t>(m * n_ + n) * bytes,
                               bytes, cudaMemcpyDeviceToHost),
                    "copy");
            const float found =
                bytes == 2 ? f16_to_f32(static_cast<uint16_t>(bits)) : f32_from_bits(bits);
            const double d = std::fabs(static_cast<double>(found) - rule);
            largest = d <= largest ? largest : d; // a NaN stays
            squares += rule * rule;
            folding += (rule - exact) * (rule - exact);
        }
        folding_ = std::sqrt(folding / squares);
        return largest / std::sqrt(squares / kSamples);
    }

    Bench& bench_;
    DType dtype_;
    int64_t m_, n_, k_;
    Result result_;
    int64_t groups_, scale_stride_;
    std::vector<uint8_t> packed_;
    std::vector<int8_t> codes_;
    std::vector<float> scales_;
    double folding_ = 0;
};

// The shapes of a step, at 512x512 and 1024x1024.
void run_low_bit(Bench& bench) {
    std::printf("wgmma, chosen |");
    for (const HopperTileSize& tile : kHopperTiles)
        std::printf(" %dx%d", tile.features, tile.tokens);
    std::printf("\n");
    struct Shape {
        int64_t m, n, k;
        Result result;
    };
    for (const Shape& s : {Shape{1536, 27648, 3072, Result::kF16},
                           {1536, 3072, 12288, Result::kAdded},
                           {1024, 9216, 3072, Result::kF16},
                           {1024, 18432, 3072, Result::kF16},
                           {1024, 3072, 3072, Result::kAdded},
                           {1024, 3072, 9216, Result::kAdded},
                           {512, 9216, 3072, Result::kF16},
                           {512, 18432, 3072, Result::kF16},
                           {512, 3072, 3072, Result::kAdded},
                           {512, 3072, 9216, Result::kAdded},
                           {4608, 27648, 3072, Result::kF16},
                           {4608, 3072, 12288, Result::kAdded},
                           {4096, 18432, 3072, Result::kF16},
                           {4096, 3072, 9216, Result::kAdded}})
        LowBitCase(bench, DType::kPQ2_0, s.m, s.n, s.k, s.result).run();
    LowBitCase(bench, DType::kPQ2_0, 1536, 27648, 3072, Result::kF32).run();
    LowBitCase(bench, DType::kQ1_0, 1536, 27648, 3072, Result::kF16).run();
    LowBitCase(bench, DType::kQ1_0, 4608, 3072, 12288, Result::kAdded).run();
}

} // namespace

int main(int argc, char** argv) {
    Bench bench;
    if (argc > 1) bench.repeats = std::max(1, std::atoi(argv[1]));
    require(Memory::create(0, 0, &bench.memory));
    bench.scratch = std::make_unique<Scratch>(*bench.memory);
    cudaDeviceProp properties;
    require(cudaGetDeviceProperties(&properties, 0), "device");
    bench.context.capability = 10 * properties.major + properties.minor;
    bench.context.multiprocessors = properties.multiProcessorCount;
    bench.context.shared_memory = properties.sharedMemPerBlockOptin;
    bench.context.stream = bench.memory->stream();
    bench.context.scratch = bench.scratch.get();
    std::printf("%s, %d multiprocessors; rates in T(FL)OP/s\n", properties.name,
                properties.multiProcessorCount);
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
