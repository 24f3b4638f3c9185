// SPDX-License-Identifier: Apache-2.0
// dequantize_row, and the unpacking of weight groups for linear
// Layout:   core/quantize.cpp is the reference for every format.
// Maths:    codes are widened to bytes, 16 at a time, with shifts, table look-ups and compares. The
//           first base-3 digit of a PTQ1_0 byte b is (b > 85) + (b > 170), and 3 * b mod 256 is the
//           byte of the digits after it.
#if defined(__aarch64__)
#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

float load_half(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

void store(int8_t* p, uint8x16_t v) {
    vst1q_s8(p, vreinterpretq_s8_u8(v));
}

// Bit j of the 16 bytes to byte j: -1 or 1.
void unpack_q1_0(const uint8_t* bits, int8_t* codes) {
    static const uint8_t kBits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bit = vld1q_u8(kBits), two = vdupq_n_u8(2), one = vdupq_n_u8(1);
    for (int i = 0; i < 16; i += 2) {
        const uint8x16_t bytes = vcombine_u8(vdup_n_u8(bits[i]), vdup_n_u8(bits[i + 1]));
        store(codes + 8 * i, vsubq_u8(vandq_u8(vtstq_u8(bytes, bit), two), one));
    }
}

// The four 2-bit fields of each of 16 bytes, interleaved by the store.
void unpack_pq2_0(const uint8_t* packed, int8_t* codes) {
    const uint8x16_t low = vdupq_n_u8(3), one = vdupq_n_u8(1);
    for (int i = 0; i < 2; ++i) {
        const uint8x16_t v = vld1q_u8(packed + 16 * i);
        uint8x16x4_t fields;
        fields.val[0] = vsubq_u8(vandq_u8(v, low), one);
        fields.val[1] = vsubq_u8(vandq_u8(vshrq_n_u8(v, 2), low), one);
        fields.val[2] = vsubq_u8(vandq_u8(vshrq_n_u8(v, 4), low), one);
        fields.val[3] = vsubq_u8(vshrq_n_u8(v, 6), one);
        vst4q_u8(reinterpret_cast<uint8_t*>(codes + 64 * i), fields);
    }
}

// The leading base-3 digit of each byte, less 1.
uint8x16_t digit(uint8x16_t v) {
    const uint8x16_t above_one = vcgtq_u8(v, vdupq_n_u8(85));
    const uint8x16_t above_two = vcgtq_u8(v, vdupq_n_u8(170));
    return vsubq_u8(vdupq_n_u8(255), vaddq_u8(above_one, above_two));
}

// Digit plane n of bytes 0..15 holds weights 16 n .., of bytes 16..23 weights 80 + 8 n .., of bytes
// 24, 25 weights 120 + 2 n ..
void unpack_ptq1_0(const uint8_t* packed, int8_t* codes) {
    uint8_t rest[16] = {};
    memcpy(rest, packed + 16, 10);
    uint8x16_t v = vld1q_u8(packed), w = vld1q_u8(rest);
    for (int n = 0; n < 5; ++n) {
        store(codes + 16 * n, digit(v));
        vst1q_u8(rest, digit(w));
        memcpy(codes + 80 + 8 * n, rest, 8);
        if (n < 4) memcpy(codes + 120 + 2 * n, rest + 8, 2);
        v = vaddq_u8(v, vaddq_u8(v, v));
        w = vaddq_u8(w, vaddq_u8(w, w));
    }
}

// 16 bytes to 32 nibbles, the low ones first, less `zero`.
void unpack_nibbles(const uint8_t* packed, uint8_t zero, int8_t* codes) {
    const uint8x16_t v = vld1q_u8(packed);
    store(codes, vsubq_u8(vandq_u8(v, vdupq_n_u8(15)), vdupq_n_u8(zero)));
    store(codes + 16, vsubq_u8(vshrq_n_u8(v, 4), vdupq_n_u8(zero)));
}

void unpack_block(DType dtype, const uint8_t* packed, int8_t* codes, float* scale, float* offset) {
    *scale = load_half(packed);
    *offset = dtype == DType::kQ4_1 ? load_half(packed + 2) : 0.0f;
    if (dtype == DType::kQ8_0)
        memcpy(codes, packed + 2, kBlock);
    else if (dtype == DType::kQ4_0)
        unpack_nibbles(packed + 2, 8, codes);
    else
        unpack_nibbles(packed + 4, 0, codes);
}

// n codes times scale, plus offset; n is a multiple of 8. Two roundings for Q4_1, as in the
// reference; adding 0 turns the -0 of code 0 and a negative scale into 0, also as there.
void scale_codes(const int8_t* codes, uint32_t n, float scale, float offset, float* out) {
    const float32x4_t add = vdupq_n_f32(offset);
    for (uint32_t j = 0; j < n; j += 8) {
        const int16x8_t wide = vmovl_s8(vld1_s8(codes + j));
        const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
        const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(wide));
        vst1q_f32(out + j, vaddq_f32(vmulq_n_f32(low, scale), add));
        vst1q_f32(out + j + 4, vaddq_f32(vmulq_n_f32(high, scale), add));
    }
}

float32x4_t wide_half(uint16x4_t four, DType dtype) {
    if (dtype == DType::kF16) return vcvt_f32_f16(vreinterpret_f16_u16(four));
    return vreinterpretq_f32_u32(vshll_n_u16(four, 16));
}

uint16x4_t load_halves(const uint8_t* packed, size_t n) {
    uint16_t four[4] = {};
    memcpy(four, packed, n * sizeof(uint16_t));
    return vld1_u16(four);
}

void dequantize_halves(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(out + i, wide_half(load_halves(packed + 2 * i, 4), dtype));
    const auto rest = static_cast<size_t>(n - i);
    store_tail(out + i, n - i, wide_half(load_halves(packed + 2 * i, rest), dtype));
}

} // namespace

void unpack_group(DType dtype, const uint8_t* packed, int8_t* codes, GroupScales* scales) {
    switch (dtype) {
    case DType::kQ1_0:
        unpack_q1_0(packed + 2, codes);
        break;
    case DType::kPQ2_0:
        unpack_pq2_0(packed + 2, codes);
        break;
    case DType::kPTQ1_0:
        unpack_ptq1_0(packed, codes);
        break;
    default: {
        const uint32_t bytes = dtype_info(dtype).bytes;
        for (int b = 0; b < kGroup / kBlock; ++b, packed += bytes)
            unpack_block(dtype, packed, codes + b * kBlock, &scales->scale[b], &scales->offset[b]);
        return;
    }
    }
    scales->scale[0] = load_half(dtype == DType::kPTQ1_0 ? packed + 26 : packed);
}

void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    if (dtype == DType::kF32) {
        memcpy(out, packed, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    if (dtype == DType::kF16 || dtype == DType::kBF16)
        return dequantize_halves(dtype, packed, out, n);
    const DTypeInfo& info = dtype_info(dtype);
    int8_t codes[kGroup];
    GroupScales scales = {};
    for (int64_t i = 0; i < n; i += info.block, packed += info.bytes) {
        if (info.block == kGroup)
            unpack_group(dtype, packed, codes, &scales);
        else
            unpack_block(dtype, packed, codes, &scales.scale[0], &scales.offset[0]);
        scale_codes(codes, info.block, scales.scale[0], scales.offset[0], out + i);
    }
}

} // namespace bonsai::cpu::neon
#endif
