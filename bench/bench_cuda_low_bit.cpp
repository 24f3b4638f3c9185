// SPDX-License-Identifier: Apache-2.0
// Low-bit weights in wgmma: rates of all tiles, results beside the rule in doubles.
#include "bench_cuda_linear.h"

namespace cuda_bench {

namespace {

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
                bench_.median([&] { require(linear_hopper(bench_.context, &product, 1, tile)); });
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

} // namespace

// At 512x512 and 1024x1024.
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

} // namespace cuda_bench
