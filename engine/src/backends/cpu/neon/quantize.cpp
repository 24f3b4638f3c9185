// SPDX-License-Identifier: Apache-2.0
// quantize_rows: f32 activations to int8 with a scale for each 128 columns of a token; rules and
// arithmetic of generic/quantize.cpp.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "backends/cpu/neon/linear.h"

namespace bonsai::cpu::neon {
namespace {

// Magnitudes compare as integers: a NaN or an infinity is at least 0x7f800000.
uint32x4_t magnitude(const float* x) {
    return vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x)));
}

uint32_t largest_magnitude(const float* x) {
    uint32x4_t top0 = magnitude(x), top1 = magnitude(x + 4);
    for (int j = 8; j < kGroup; j += 8) {
        top0 = vmaxq_u32(top0, magnitude(x + j));
        top1 = vmaxq_u32(top1, magnitude(x + j + 4));
    }
    return vmaxvq_u32(vmaxq_u32(top0, top1));
}

// 8 codes as shorts.
int16x8_t rounded(const float* x, float inverse) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
    return vcombine_s16(vmovn_s32(low), vmovn_s32(high));
}

// 32 codes, stored; returns their sum, which is below 2^15.
int32_t quantize_block(const float* x, float inverse, int8_t* q) {
    int16x8_t sum = vdupq_n_s16(0);
    for (int j = 0; j < kBlock; j += 8) {
        const int16x8_t codes = rounded(x + j, inverse);
        vst1_s8(q + j, vmovn_s16(codes));
        sum = vaddq_s16(sum, codes);
    }
    return vaddvq_s16(sum);
}

void quantize_group(const float* x, const QuantizedRows& out, int64_t m, int64_t g) {
    int8_t* q = out.q + m * out.stride + g * kGroup;
    const uint32_t top = largest_magnitude(x);
    const float largest = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(top)), 0);
    const bool finite = top < 0x7f800000u;
    const bool usable = finite && largest >= kLeastGroupMagnitude;
    out.scale[g * out.rows + m] = !finite ? __builtin_nanf("") : usable ? largest / 127.0f : 0.0f;
    const float inverse = usable ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    for (int b = 0; b < kGroup / kBlock; ++b) {
        int32_t block_sum = 0;
        if (usable) {
            block_sum = quantize_block(x + b * kBlock, inverse, q + b * kBlock);
        } else {
            vst1q_s8(q + b * kBlock, vdupq_n_s8(0));
            vst1q_s8(q + b * kBlock + 16, vdupq_n_s8(0));
        }
        if (out.block_sum != nullptr)
            out.block_sum[(g * (kGroup / kBlock) + b) * out.rows + m] = block_sum;
        sum += block_sum;
    }
    if (out.sum != nullptr) out.sum[g * out.rows + m] = sum;
}

} // namespace

void quantize_rows(const Tensor& x, const QuantizedRows& out, Range rows) {
    const int64_t groups = out.cols / kGroup;
    for (int64_t m = rows.begin; m < rows.end; ++m)
        for (int64_t g = 0; g < groups; ++g)
            quantize_group(static_cast<const float*>(x.data) + m * x.stride + g * kGroup, out, m,
                           g);
}

} // namespace bonsai::cpu::neon
#endif
