// SPDX-License-Identifier: Apache-2.0
// group_sums: the sum and the sum of squares of each channel group over some pixels, added to
// sums[2 g], sums[2 g + 1]. Everything in doubles: var = E[x^2] - mean^2 loses digits, and reading
// x costs as much as converting it. Channels are summed kBlock pixels and 8 channels at a time in
// registers, then into an array on the stack, then by group.
#include "backends/cpu/rows.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

constexpr int kBlock = 32;     // pixels: what 512 channels of them take fits in L2
constexpr int kLane = 8;       // channels of one register step
constexpr int kChannels = 512; // of one pass over the pixels; two arrays of 4 KB

// Adds sum and squares of 8 channels (n of them present) over `pixels` pixels.
inline void add_channels(const float* x, int64_t stride, int64_t pixels, int64_t n, double* sum,
                         double* squares) {
    const __m256i mask = n < kLane ? tail_mask(n) : _mm256_set1_epi32(-1);
    __m256d sum0 = _mm256_load_pd(sum), sum1 = _mm256_load_pd(sum + 4);
    __m256d squares0 = _mm256_load_pd(squares), squares1 = _mm256_load_pd(squares + 4);
    for (int64_t p = 0; p < pixels; ++p) {
        const __m256 value = _mm256_maskload_ps(x + p * stride, mask);
        const __m256d low = low_double(value), high = high_double(value);
        sum0 = _mm256_add_pd(sum0, low);
        sum1 = _mm256_add_pd(sum1, high);
        squares0 = _mm256_fmadd_pd(low, low, squares0);
        squares1 = _mm256_fmadd_pd(high, high, squares1);
    }
    _mm256_store_pd(sum, sum0);
    _mm256_store_pd(sum + 4, sum1);
    _mm256_store_pd(squares, squares0);
    _mm256_store_pd(squares + 4, squares1);
}

void group_sums(const GroupNormArgs& args, Range pixels, double* sums) {
    alignas(32) double sum[kChannels], squares[kChannels];
    const int64_t group_channels = args.x.cols / args.groups;
    for (int64_t first = 0; first < args.x.cols; first += kChannels) {
        const int64_t channels = args.x.cols - first < kChannels ? args.x.cols - first : kChannels;
        for (int c = 0; c < kChannels; ++c)
            sum[c] = squares[c] = 0;
        for (int64_t p = pixels.begin; p < pixels.end; p += kBlock) {
            const int64_t n = pixels.end - p < kBlock ? pixels.end - p : kBlock;
            for (int64_t c = 0; c < channels; c += kLane)
                add_channels(row_of(args.x, p) + first + c, args.x.stride, n,
                             channels - c < kLane ? channels - c : kLane, sum + c, squares + c);
        }
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t g = (first + c) / group_channels;
            sums[2 * g] += sum[c];
            sums[2 * g + 1] += squares[c];
        }
    }
}

} // namespace

void overlay_avx2_group_norm(KernelTable& table) {
    table.group_sums = group_sums;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_group_norm(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
