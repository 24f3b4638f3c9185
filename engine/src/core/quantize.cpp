// SPDX-License-Identifier: Apache-2.0
#include "core/quantize.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"

namespace bonsai {
namespace {

uint16_t load16(const uint8_t* p) {
    return static_cast<uint16_t>(p[0] | p[1] << 8);
}
void store16(uint8_t* p, uint16_t v) {
    p[0] = static_cast<uint8_t>(v);
    p[1] = static_cast<uint8_t>(v >> 8);
}
float load_half(const uint8_t* p) {
    return f16_to_f32(load16(p));
}

// Where digit n (of 5, or 4 in the last two bytes) of byte b of a PTQ1_0 block goes: 16 bytes with
// 16 weights a digit plane, then 8 with 8, then 2 with 2.
int ptq1_index(int b, int n) {
    if (b < 16) return 16 * n + b;
    if (b < 24) return 80 + 8 * n + (b - 16);
    return 120 + 2 * n + (b - 24);
}
int ptq1_digits(int b) {
    return b < 24 ? 5 : 4;
}

// 1 / d; 0 for a scale that F16 cannot hold, which decodes to zeros whatever the codes.
float inverse_scale(float d) {
    return std::fabs(d) > 1e-30f ? 1.0f / d : 0.0f;
}

float max_abs(const float* x, int n) {
    float m = 0;
    for (int i = 0; i < n; ++i)
        m = std::max(m, std::fabs(x[i]));
    return m;
}

int clamped(float value, int low, int high) {
    return static_cast<int>(
        std::min<float>(std::max<float>(value, static_cast<float>(low)), static_cast<float>(high)));
}

void pack_q8_0(const float* x, uint8_t* out) {
    const float d = max_abs(x, 32) / 127.0f;
    const float inverse = inverse_scale(d);
    store16(out, f32_to_f16(d));
    for (int j = 0; j < 32; ++j)
        out[2 + j] = static_cast<uint8_t>(clamped(std::round(x[j] * inverse), -127, 127));
}

// The extreme value maps to code 0, so that the wider negative side of [-8, 7] is used.
void pack_q4_0(const float* x, uint8_t* out) {
    float extreme = 0;
    for (int j = 0; j < 32; ++j)
        if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    const float d = extreme / -8.0f;
    const float inverse = inverse_scale(d);
    store16(out, f32_to_f16(d));
    for (int j = 0; j < 16; ++j) {
        const int low = clamped(x[j] * inverse + 8.5f, 0, 15);
        const int high = clamped(x[j + 16] * inverse + 8.5f, 0, 15);
        out[2 + j] = static_cast<uint8_t>(low | high << 4);
    }
}

void pack_q4_1(const float* x, uint8_t* out) {
    const float least = *std::min_element(x, x + 32);
    const float d = (*std::max_element(x, x + 32) - least) / 15.0f;
    const float inverse = inverse_scale(d);
    store16(out, f32_to_f16(d));
    store16(out + 2, f32_to_f16(least));
    for (int j = 0; j < 16; ++j) {
        const int low = clamped((x[j] - least) * inverse + 0.5f, 0, 15);
        const int high = clamped((x[j + 16] - least) * inverse + 0.5f, 0, 15);
        out[4 + j] = static_cast<uint8_t>(low | high << 4);
    }
}

// Scale: the mean magnitude, which is the least-squares choice and exact for weights that are
// binary already.
void pack_q1_0(const float* x, uint8_t* out) {
    double sum = 0;
    for (int j = 0; j < kGroup; ++j)
        sum += std::fabs(x[j]);
    store16(out, f32_to_f16(static_cast<float>(sum / kGroup)));
    std::fill(out + 2, out + 18, uint8_t{0});
    for (int j = 0; j < kGroup; ++j)
        if (x[j] >= 0) out[2 + j / 8] = static_cast<uint8_t>(out[2 + j / 8] | 1 << (j & 7));
}

// Ternary codes 0, 1, 2 for -d, 0, +d with d the largest magnitude; returns d.
float ternary_codes(const float* x, int* codes) {
    const float d = max_abs(x, kGroup);
    const float inverse = inverse_scale(d);
    for (int j = 0; j < kGroup; ++j)
        codes[j] = clamped(std::round(x[j] * inverse), -1, 1) + 1;
    return d;
}

void pack_pq2_0(const float* x, uint8_t* out) {
    int codes[kGroup];
    store16(out, f32_to_f16(ternary_codes(x, codes)));
    for (int b = 0; b < 32; ++b) {
        const int* c = codes + 4 * b;
        out[2 + b] = static_cast<uint8_t>(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
    }
}

// A byte holds ceil(v * 256 / 243), v its five digits base 3, the first most significant; four
// digits are shifted up by one.
void pack_ptq1_0(const float* x, uint8_t* out) {
    int codes[kGroup];
    store16(out + 26, f32_to_f16(ternary_codes(x, codes)));
    for (int b = 0; b < 26; ++b) {
        int v = 0;
        for (int n = 0; n < 5; ++n)
            v = 3 * v + (n < ptq1_digits(b) ? codes[ptq1_index(b, n)] : 0);
        out[b] = static_cast<uint8_t>((v * 256 + 242) / 243);
    }
}

void pack_block(DType dtype, const float* x, uint8_t* out) {
    switch (dtype) {
    case DType::kF32: {
        const uint32_t bits = f32_bits(*x);
        store16(out, static_cast<uint16_t>(bits));
        store16(out + 2, static_cast<uint16_t>(bits >> 16));
        return;
    }
    case DType::kF16:
        return store16(out, f32_to_f16(*x));
    case DType::kBF16:
        return store16(out, f32_to_bf16(*x));
    case DType::kQ8_0:
        return pack_q8_0(x, out);
    case DType::kQ4_0:
        return pack_q4_0(x, out);
    case DType::kQ4_1:
        return pack_q4_1(x, out);
    case DType::kQ1_0:
        return pack_q1_0(x, out);
    case DType::kPQ2_0:
        return pack_pq2_0(x, out);
    case DType::kPTQ1_0:
        return pack_ptq1_0(x, out);
    case DType::kI8:
        return; // nothing is stored so
    }
}

// The largest magnitude whose packed form is finite: beyond, an F16 value or scale would overflow.
float largest_packable(DType dtype) {
    const float half = 65504.0f;
    switch (dtype) {
    case DType::kF32:
        return 3.4028234664e38f;
    case DType::kBF16:
        return 3.3895313892e38f;
    case DType::kQ8_0:
        return half * 127.0f;
    case DType::kQ4_0:
        return half * 8.0f;
    default:
        return half;
    }
}

} // namespace

Status quantize_rows(DType dtype, const float* x, int64_t rows, int64_t cols, uint8_t* out) {
    const DTypeInfo& info = dtype_info(dtype);
    if (rows < 0 || cols < 0 || cols % info.block != 0)
        return fail(ErrorCode::kArgument,
                    "cannot pack a %lld x %lld matrix as %s: columns must be a multiple of %u",
                    static_cast<long long>(rows), static_cast<long long>(cols), info.name,
                    info.block);
    const float largest = largest_packable(dtype);
    for (int64_t i = 0; i < rows * cols; ++i)
        if (!(std::fabs(x[i]) <= largest)) // also true for NaN
            return fail(ErrorCode::kArgument,
                        "cannot pack as %s: value %g at row %lld, column %lld; magnitudes up to %g "
                        "are possible",
                        info.name, static_cast<double>(x[i]), static_cast<long long>(i / cols),
                        static_cast<long long>(i % cols), static_cast<double>(largest));
    const int64_t blocks = rows * cols / info.block;
    for (int64_t b = 0; b < blocks; ++b)
        pack_block(dtype, x + b * info.block, out + b * info.bytes);
    return Status();
}

void unpack_block(DType dtype, const uint8_t* block, BlockCodes* out) {
    out->scale = load_half(dtype == DType::kPTQ1_0 ? block + 26 : block);
    out->offset = dtype == DType::kQ4_1 ? load_half(block + 2) : 0.0f;
    int8_t* codes = out->codes;
    const uint8_t* q = block + 2;
    switch (dtype) {
    case DType::kQ8_0:
        for (int j = 0; j < 32; ++j)
            codes[j] = static_cast<int8_t>(q[j]);
        return;
    case DType::kQ4_0:
    case DType::kQ4_1: {
        const int zero = dtype == DType::kQ4_0 ? 8 : 0;
        q = dtype == DType::kQ4_0 ? q : q + 2;
        for (int j = 0; j < 16; ++j) {
            codes[j] = static_cast<int8_t>((q[j] & 15) - zero);
            codes[j + 16] = static_cast<int8_t>((q[j] >> 4) - zero);
        }
        return;
    }
    case DType::kQ1_0:
        for (int j = 0; j < kGroup; ++j)
            codes[j] = (q[j / 8] >> (j & 7) & 1) != 0 ? 1 : -1;
        return;
    case DType::kPQ2_0:
        for (int j = 0; j < kGroup; ++j)
            codes[j] = static_cast<int8_t>((q[j / 4] >> 2 * (j & 3) & 3) - 1);
        return;
    case DType::kPTQ1_0:
        // The leading digit of the fraction byte / 256 in base 3 is (3 * byte) >> 8; the rest of
        // the product is the next byte.
        for (int b = 0; b < 26; ++b) {
            int fraction = block[b];
            for (int n = 0; n < ptq1_digits(b); ++n) {
                codes[ptq1_index(b, n)] = static_cast<int8_t>((fraction * 3 >> 8) - 1);
                fraction = fraction * 3 & 255;
            }
        }
        return;
    default:
        return; // float types have no codes
    }
}

void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    switch (dtype) {
    case DType::kF32:
        std::memcpy(out, packed, static_cast<size_t>(n) * 4);
        return;
    case DType::kF16:
        for (int64_t i = 0; i < n; ++i)
            out[i] = load_half(packed + 2 * i);
        return;
    case DType::kBF16:
        for (int64_t i = 0; i < n; ++i)
            out[i] = bf16_to_f32(load16(packed + 2 * i));
        return;
    default:
        break;
    }
    const DTypeInfo& info = dtype_info(dtype);
    BlockCodes block;
    for (int64_t i = 0; i < n; i += info.block, packed += info.bytes) {
        unpack_block(dtype, packed, &block);
        for (uint32_t j = 0; j < info.block; ++j)
            out[i + j] = block.scale * block.codes[j] + block.offset;
    }
}

} // namespace bonsai
