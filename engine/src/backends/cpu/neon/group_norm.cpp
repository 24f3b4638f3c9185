// SPDX-License-Identifier: Apache-2.0
// group_sums: the sum and the sum of squares of each channel group over some pixels, added to
// sums[2 g], sums[2 g + 1]. Everything in doubles: var = E[x^2] - mean^2 loses digits, and reading
// x costs as much as converting it. Channels are summed kBlock pixels and 4 channels at a time in
// registers, then into an array on the stack, then by group.
#if defined(__aarch64__)
#include "backends/cpu/neon/rows.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

constexpr int kPixels = 32;    // of one pass: what 512 channels of them take fits in L2
constexpr int kChannels = 512; // of one pass; two arrays of 4 KB

// Adds sum and squares of 4 channels over `pixels` pixels.
inline void add_channels(const float* x, int64_t stride, int64_t pixels, double* sum,
                         double* squares) {
    float64x2_t sum0 = vld1q_f64(sum), sum1 = vld1q_f64(sum + 2);
    float64x2_t squares0 = vld1q_f64(squares), squares1 = vld1q_f64(squares + 2);
    for (int64_t p = 0; p < pixels; ++p) {
        const float32x4_t value = vld1q_f32(x + p * stride);
        const float64x2_t low = low_double(value), high = high_double(value);
        sum0 = vaddq_f64(sum0, low);
        sum1 = vaddq_f64(sum1, high);
        squares0 = vfmaq_f64(squares0, low, low);
        squares1 = vfmaq_f64(squares1, high, high);
    }
    vst1q_f64(sum, sum0);
    vst1q_f64(sum + 2, sum1);
    vst1q_f64(squares, squares0);
    vst1q_f64(squares + 2, squares1);
}

inline void add_channel(const float* x, int64_t stride, int64_t pixels, double* sum,
                        double* squares) {
    for (int64_t p = 0; p < pixels; ++p) {
        const double value = x[p * stride];
        *sum += value;
        *squares += value * value;
    }
}

} // namespace

void group_sums(const GroupNormArgs& args, Range pixels, double* sums) {
    double sum[kChannels], squares[kChannels];
    const int64_t group_channels = args.x.cols / args.groups;
    for (int64_t first = 0; first < args.x.cols; first += kChannels) {
        const int64_t channels = args.x.cols - first < kChannels ? args.x.cols - first : kChannels;
        for (int c = 0; c < kChannels; ++c)
            sum[c] = squares[c] = 0;
        for (int64_t p = pixels.begin; p < pixels.end; p += kPixels) {
            const int64_t n = pixels.end - p < kPixels ? pixels.end - p : kPixels;
            const float* x = row_of(args.x, p) + first;
            int64_t c = 0;
            for (; c + 4 <= channels; c += 4)
                add_channels(x + c, args.x.stride, n, sum + c, squares + c);
            for (; c < channels; ++c)
                add_channel(x + c, args.x.stride, n, sum + c, squares + c);
        }
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t g = (first + c) / group_channels;
            sums[2 * g] += sum[c];
            sums[2 * g + 1] += squares[c];
        }
    }
}

} // namespace bonsai::cpu::neon
#endif
