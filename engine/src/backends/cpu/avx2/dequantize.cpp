// SPDX-License-Identifier: Apache-2.0
// dequantize_row, and the unpacking of weight groups for linear
// Layout:   core/quantize.cpp is the reference for every format.
// Maths:    codes are widened to bytes, 32 at a time, with shifts, byte shuffles and compares. The
//           first base-3 digit of a PTQ1_0 byte b is (b > 85) + (b > 170), and 3 * b mod 256 is the
//           byte of the digits after it.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

#include "backends/cpu/avx2/unpack.h"

namespace bonsai::cpu::avx2 {
namespace {

float load_half(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

__m256i load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
void store(void* p, __m256i v) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}

// Bit j of the 16 bytes to byte j: 0 or 2.
void unpack_q1_0(const uint8_t* bits, uint8_t* codes) {
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
    for (int i = 0; i < 4; ++i) {
        int32_t word;
        std::memcpy(&word, bits + 4 * i, sizeof word);
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
        store(codes + 32 * i, _mm256_and_si256(set, _mm256_set1_epi8(2)));
    }
}

// Each byte, zero-extended to 32 bits, is spread so that its four 2-bit fields become the four
// bytes.
void unpack_pq2_0(const uint8_t* packed, uint8_t* codes) {
    for (int i = 0; i < 4; ++i) {
        __m256i v =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + 8 * i)));
        v = _mm256_or_si256(v, _mm256_slli_epi32(v, 12));
        v = _mm256_or_si256(v, _mm256_slli_epi32(v, 6));
        store(codes + 32 * i, _mm256_and_si256(v, _mm256_set1_epi8(3)));
    }
}

// Digit plane n of bytes 0..15 holds weights 16 n .., of bytes 16..23 weights 80 + 8 n .., of bytes
// 24, 25 weights 120 + 2 n ..
void unpack_ptq1_0(const uint8_t* packed, uint8_t* codes) {
    alignas(32) uint8_t plane[32];
    __m256i v = _mm256_setzero_si256();
    std::memcpy(plane, packed, 26);
    std::memset(plane + 26, 0, 6);
    v = load(plane);
    const __m256i one = _mm256_set1_epi8(86), two = _mm256_set1_epi8(static_cast<char>(171));
    for (int n = 0; n < 5; ++n) {
        const __m256i above_one = _mm256_cmpeq_epi8(_mm256_max_epu8(v, one), v);
        const __m256i above_two = _mm256_cmpeq_epi8(_mm256_max_epu8(v, two), v);
        const __m256i digit =
            _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(above_one, above_two));
        const __m128i high = _mm256_extracti128_si256(digit, 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16 * n), _mm256_castsi256_si128(digit));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + 80 + 8 * n), high);
        if (n < 4) {
            const auto pair = static_cast<uint16_t>(_mm_extract_epi16(high, 4));
            std::memcpy(codes + 120 + 2 * n, &pair, sizeof pair);
        }
        v = _mm256_add_epi8(v, _mm256_add_epi8(v, v));
    }
}

// 16 bytes to 32 nibbles: the low ones first.
__m256i nibbles(const uint8_t* packed) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(v, 4), v);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

void unpack_blocks(DType dtype, const uint8_t* packed, uint8_t* codes, GroupScales* scales) {
    const int head = dtype == DType::kQ4_1 ? 4 : 2;
    const int bytes = head + (dtype == DType::kQ8_0 ? 32 : 16);
    for (int b = 0; b < kGroup / kBlock; ++b, packed += bytes) {
        const float d = load_half(packed);
        scales->scale[b] = d;
        scales->offset[b] = dtype == DType::kQ8_0   ? 0.0f
                            : dtype == DType::kQ4_0 ? -8.0f * d
                                                    : load_half(packed + 2);
        store(codes + 32 * b, dtype == DType::kQ8_0 ? load(packed + head) : nibbles(packed + head));
    }
}

// Eight bytes from p, less `zero`, times scale, plus offset. Two roundings for Q4_1, as in the
// reference.
__m256 scaled(__m256i codes, int zero, __m256 scale, __m256 offset) {
    const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(zero)));
    return _mm256_add_ps(_mm256_mul_ps(value, scale), offset);
}

void dequantize_low_bit(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    const uint32_t bytes = dtype_info(dtype).bytes;
    alignas(32) uint8_t codes[kGroup];
    GroupScales scales;
    for (int64_t i = 0; i < n; i += kGroup, packed += bytes) {
        unpack_group(dtype, packed, codes, &scales);
        const __m256 scale = _mm256_set1_ps(scales.scale[0]);
        for (int j = 0; j < kGroup; j += 8) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + j));
            _mm256_storeu_ps(out + i + j,
                             scaled(_mm256_cvtepu8_epi32(eight), 1, scale, _mm256_setzero_ps()));
        }
    }
}

void dequantize_blocks(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    const uint32_t bytes = dtype_info(dtype).bytes;
    const int zero = dtype == DType::kQ4_0 ? 8 : 0;
    alignas(32) uint8_t codes[kBlock];
    for (int64_t i = 0; i < n; i += kBlock, packed += bytes) {
        const __m256 scale = _mm256_set1_ps(load_half(packed));
        const __m256 offset = _mm256_set1_ps(dtype == DType::kQ4_1 ? load_half(packed + 2) : 0.0f);
        store(codes, dtype == DType::kQ8_0 ? load(packed + 2) : nibbles(packed + bytes - 16));
        for (int j = 0; j < kBlock; j += 8) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + j));
            const __m256i wide =
                dtype == DType::kQ8_0 ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
            _mm256_storeu_ps(out + i + j, scaled(wide, zero, scale, offset));
        }
    }
}

__m256 wide_half(__m128i eight, DType dtype) {
    if (dtype == DType::kF16) return _mm256_cvtph_ps(eight);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

void dequantize_halves(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + 2 * i));
        _mm256_storeu_ps(out + i, wide_half(eight, dtype));
    }
    if (i == n) return;
    alignas(16) uint16_t rest[8] = {};
    alignas(32) float wide[8];
    std::memcpy(rest, packed + 2 * i, static_cast<size_t>(n - i) * 2);
    _mm256_store_ps(wide, wide_half(_mm_load_si128(reinterpret_cast<const __m128i*>(rest)), dtype));
    std::memcpy(out + i, wide, static_cast<size_t>(n - i) * 4);
}

} // namespace

void unpack_group(DType dtype, const uint8_t* packed, uint8_t* codes, GroupScales* scales) {
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
    default:
        return unpack_blocks(dtype, packed, codes, scales);
    }
    scales->scale[0] = load_half(dtype == DType::kPTQ1_0 ? packed + 26 : packed);
}

void dequantize_row(DType dtype, const uint8_t* packed, float* out, int64_t n) {
    if (dtype == DType::kF32)
        std::memcpy(out, packed, static_cast<size_t>(n) * 4);
    else if (dtype == DType::kF16 || dtype == DType::kBF16)
        dequantize_halves(dtype, packed, out, n);
    else if (dtype_info(dtype).block == kGroup)
        dequantize_low_bit(dtype, packed, out, n);
    else
        dequantize_blocks(dtype, packed, out, n);
}

void interleave(const void* rows, int64_t stride, int64_t units, void* out) {
    const char* in = static_cast<const char*>(rows);
    char* to = static_cast<char*>(out);
    for (int64_t u = 0; u < units; u += 8, in += 32, to += 8 * 64) {
        __m256i r[8], s[8], t[8];
        for (int i = 0; i < 8; ++i)
            r[i] = load(in + i * stride);
        // 8 x 8 transposition: pairs of 32, pairs of 64, halves of 128 bits.
        for (int i = 0; i < 8; i += 2) {
            s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
            s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            t[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
            t[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
            t[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
            t[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
        }
        for (int i = 0; i < 4; ++i) {
            store(to + i * 64, _mm256_permute2x128_si256(t[i], t[i + 4], 0x20));
            store(to + (i + 4) * 64, _mm256_permute2x128_si256(t[i], t[i + 4], 0x31));
        }
    }
}

} // namespace bonsai::cpu::avx2
#endif
