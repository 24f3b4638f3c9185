// SPDX-License-Identifier: Apache-2.0
// A matrix product whose left operand is read at several row offsets: the form that a convolution
// takes over an image with a zero border. Plain products are the case of one tap.
#pragma once

#include <cuda_fp16.h>

#include "backends/cuda/context.h"

namespace bonsai::cuda {

constexpr int kChunk = 64;     // channels of one step along the sum: 128 bytes of f16
constexpr int kRowSlack = 256; // rows that may be read behind the last one of `a`, of any content

inline int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// out[r, n] = alpha * row_scale[r] * sum_{tap, c} a[m + shift(tap), c] * b[n, tap, c] + bias[n] +
// add[r, n], where row m of `a` holds pixel m % pitch of line m / pitch, shift = (tap / 3) * pitch
// + tap % 3, and r = m / pitch * width + m % pitch; rows with m % pitch >= width are dropped.
struct ShiftGemm {
    const __half* a = nullptr; // [>= rows + largest shift + kRowSlack, channels]
    const void* b = nullptr;   // pack_weights' result
    int64_t rows = 0;          // m
    int64_t a_rows = 0;        // rows that `a` has in memory
    int n = 0;
    int channels = 0; // a multiple of kChunk
    int taps = 1;     // 1 or 9
    int64_t pitch = 0;
    int64_t width = 0;
    const float* bias = nullptr;
    const float* alpha = nullptr;     // one number in device memory, or null
    const float* row_scale = nullptr; // [r] or null
    bool adds = false;                // `add` will be given
    const float* add = nullptr;
    int64_t add_stride = 0;
    float* out = nullptr;
    int64_t out_stride = 0;
    // More than 1: as many shares of the sum, each with its own `out`, part_stride floats apart.
    // Without bias and add.
    int parts = 1;
    int64_t part_stride = 0;
};

// How the kernel chosen for a shape wants its right operand: tiles of `rows` rows (n) and kChunk
// columns, each one piece of memory, in the order n tile, tap, chunk; the 16-byte pieces of row r
// are permuted by xor with r % 8.
enum class GemmTile {
    kAnyChip,
    kTall,  // the others are Hopper's: 256 x 128
    kSmall, // 128 x 128, two blocks a multiprocessor
};
struct GemmPlan {
    int tile_n;
    GemmTile tile;
};
GemmPlan plan_gemm(const Context& context, const ShiftGemm& gemm);
GemmPlan plan_gemm_hopper(const Context& context, const ShiftGemm& gemm);
inline size_t packed_halves(const GemmPlan& plan, int64_t n, int64_t channels, int taps) {
    return static_cast<size_t>(round_up(n, plan.tile_n) * round_up(channels, kChunk) * taps);
}
// From b [n, taps * channels] of f32, f16 or bf16 with a row stride, or the transpose (one tap) of
// f32 or f16.
Status pack_weights(const Context& context, const GemmPlan& plan, const Tensor& b, int64_t channels,
                    int taps, __half* out);
Status pack_transposed(const Context& context, const GemmPlan& plan, const Tensor& b, __half* out);

Status shift_gemm(const Context& context, const GemmPlan& plan, const ShiftGemm& gemm);
Status shift_gemm_hopper(const Context& context, const GemmPlan& plan, const ShiftGemm& gemm);

} // namespace bonsai::cuda
