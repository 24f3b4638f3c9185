// SPDX-License-Identifier: Apache-2.0
// Packed weights straight to AMX tiles
// Layout:   a row of a tile holds, for each of the 16 columns of a panel (rows of W), four
//           successive weights as signed codes; a group of 128 of K is 32 such rows. Low-bit codes
//           are -1, 0, 1 (2 where a ternary format says 3).
// Maths:    the packed blocks are transposed as 32-bit words, which are a fraction of the codes,
//           so that a register holds one word of all 16 columns; then each word becomes its rows.
//           core/quantize.cpp is the reference for every format.
// Work:     by count 1 to 3 cycles a tile row. A weight is unpacked once for up to 1536 rows of x,
//           in which time its tiles are used 48 times, 32 cycles each or more.
// Static throughout: AVX-512 code must not reach other objects through the linker.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "backends/cpu/amx/linear_frame.h"

namespace bonsai::cpu::amx {
namespace {

constexpr int kRowBytes = 4 * kColumns;        // of a tile row
constexpr int kGroupBytes = kGroup * kColumns; // of a panel's group

// words[u] = word u of all columns, for `count` words (up to 8) from `skip` bytes on.
BONSAI_ALWAYS_INLINE void load_words(const Packed& packed, int skip, int count,
                                     __m512i (&words)[8]) {
    const auto wanted = static_cast<__mmask8>((1 << count) - 1);
    const auto row = [&](int i) { return _mm256_maskz_loadu_epi32(wanted, packed[i] + skip); };
    // Four columns in the lower halves, the four after them in the upper ones, twice.
    __m512i in[8], t[8];
    BONSAI_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
        const int first = i / 4 * 8 + i % 4;
        in[i] = _mm512_inserti64x4(_mm512_castsi256_si512(row(first)), row(first + 4), 1);
    }
    BONSAI_UNROLL(2)
    for (int i = 0; i < 8; i += 4) {
        const __m512i low0 = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        const __m512i high0 = _mm512_unpackhi_epi32(in[i], in[i + 1]);
        const __m512i low1 = _mm512_unpacklo_epi32(in[i + 2], in[i + 3]);
        const __m512i high1 = _mm512_unpackhi_epi32(in[i + 2], in[i + 3]);
        t[i] = _mm512_unpacklo_epi64(low0, low1);
        t[i + 1] = _mm512_unpackhi_epi64(low0, low1);
        t[i + 2] = _mm512_unpacklo_epi64(high0, high1);
        t[i + 3] = _mm512_unpackhi_epi64(high0, high1);
    }
    BONSAI_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
        words[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        words[i + 4] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
    }
}

BONSAI_ALWAYS_INLINE void store_row(uint8_t* tiles, int row, __m512i codes) {
    _mm512_store_si512(tiles + row * kRowBytes, codes);
}

// The half-precision number `skip` bytes into the blocks.
BONSAI_ALWAYS_INLINE __m512 halves_at(const Packed& packed, int skip) {
    alignas(32) uint16_t halves[kColumns];
    for (int i = 0; i < kColumns; ++i)
        std::memcpy(&halves[i], packed[i] + skip, sizeof halves[i]);
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
}

// 128 bits: a byte is two tile rows.
BONSAI_ALWAYS_INLINE __m512 unpack_q1_0(const Packed& packed, uint8_t* tiles) {
    __m512i words[8];
    load_words(packed, 2, 4, words);
    const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
    const __m512i low = _mm512_set1_epi32(0x08040201);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0x80402010u));
    const __m512i first = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    BONSAI_UNROLL(4)
    for (int w = 0; w < 4; ++w) {
        BONSAI_UNROLL(4)
        for (int b = 0; b < 4; ++b) {
            const __m512i spread = _mm512_shuffle_epi8(
                words[w], _mm512_add_epi8(first, _mm512_set1_epi8(static_cast<char>(b))));
            store_row(tiles, 8 * w + 2 * b,
                      _mm512_mask_blend_epi8(_mm512_test_epi8_mask(spread, low), minus, plus));
            store_row(tiles, 8 * w + 2 * b + 1,
                      _mm512_mask_blend_epi8(_mm512_test_epi8_mask(spread, high), minus, plus));
        }
    }
    return halves_at(packed, 0);
}

// 128 fields of two bits: a byte is a tile row.
BONSAI_ALWAYS_INLINE __m512 unpack_pq2_0(const Packed& packed, uint8_t* tiles) {
    __m512i words[8];
    load_words(packed, 2, 8, words);
    const __m512i byte = _mm512_set1_epi32(0xff), field = _mm512_set1_epi8(3);
    const __m512i one = _mm512_set1_epi8(1);
    BONSAI_UNROLL(8)
    for (int w = 0; w < 8; ++w) {
        BONSAI_UNROLL(4)
        for (int b = 0; b < 4; ++b) {
            __m512i v = _mm512_and_si512(_mm512_srli_epi32(words[w], 8 * b), byte);
            v = _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
            v = _mm512_or_si512(v, _mm512_slli_epi32(v, 6));
            store_row(tiles, 4 * w + b, _mm512_sub_epi8(_mm512_and_si512(v, field), one));
        }
    }
    return halves_at(packed, 0);
}

// The first base-3 digit of each byte, less 1.
BONSAI_ALWAYS_INLINE __m512i first_digit(__m512i bytes) {
    const __mmask64 over_one = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(86));
    const __mmask64 over_two =
        _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(static_cast<char>(171)));
    const __m512i two =
        _mm512_mask_mov_epi8(_mm512_set1_epi8(-1), over_one, _mm512_setzero_si512());
    return _mm512_mask_mov_epi8(two, over_two, _mm512_set1_epi8(1));
}

// Digit n of bytes 0 .. 15 are weights 16 n .., of bytes 16 .. 23 weights 80 + 8 n .., of bytes 24
// and 25 weights 120 + 2 n ..; 3 * b mod 256 is the byte of the digits after the first.
BONSAI_ALWAYS_INLINE __m512 unpack_ptq1_0(const Packed& packed, uint8_t* tiles) {
    __m512i words[8];
    load_words(packed, 0, 7, words);
    const __m512 scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words[6], 16)));
    __m512i last = _mm512_setzero_si512();
    BONSAI_UNROLL(5)
    for (int n = 0; n < 5; ++n) {
        BONSAI_UNROLL(7)
        for (int w = 0; w < 7; ++w) {
            const __m512i digits = first_digit(words[w]);
            if (w < 4)
                store_row(tiles, 4 * n + w, digits);
            else if (w < 6)
                store_row(tiles, 20 + 2 * n + w - 4, digits);
            else if (n % 2 == 0)
                last = digits;
            else
                store_row(tiles, 30 + n / 2,
                          _mm512_mask_blend_epi16(0xaaaaaaaa, last, _mm512_slli_epi32(digits, 16)));
            words[w] = _mm512_add_epi8(words[w], _mm512_add_epi8(words[w], words[w]));
        }
    }
    return scale;
}

BONSAI_ALWAYS_INLINE void advance(Packed& packed, int64_t bytes) {
    for (const uint8_t*& p : packed)
        p += bytes;
}

// A group of a panel; returns its scales.
template <DType dtype> BONSAI_ALWAYS_INLINE __m512 unpack_group(Packed& packed, uint8_t* tiles) {
    const __m512 scale = dtype == DType::kQ1_0    ? unpack_q1_0(packed, tiles)
                         : dtype == DType::kPQ2_0 ? unpack_pq2_0(packed, tiles)
                                                  : unpack_ptq1_0(packed, tiles);
    advance(packed, dtype_info(dtype).bytes);
    return scale;
}

// A group in blocks of 32, 8 tile rows each; offsets (Q4_1 only) beside the scales.
template <DType dtype>
BONSAI_ALWAYS_INLINE void unpack_blocks(Packed& packed, uint8_t* tiles, float (*scale)[kColumns],
                                        float (*offset)[kColumns]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i zero = _mm512_set1_epi8(dtype == DType::kQ4_0 ? 8 : 0);
    for (int b = 0; b < kGroup / kBlock; ++b, tiles += kBlock / 4 * kRowBytes) {
        __m512i words[8];
        load_words(packed, dtype == DType::kQ4_1 ? 4 : 2, dtype == DType::kQ8_0 ? 8 : 4, words);
        BONSAI_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
            const __m512i low = _mm512_and_si512(words[i], nibble);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(words[i], 4), nibble);
            const bool whole = dtype == DType::kQ8_0;
            store_row(tiles, i, whole ? words[i] : _mm512_sub_epi8(low, zero));
            store_row(tiles, i + 4, whole ? words[i + 4] : _mm512_sub_epi8(high, zero));
        }
        _mm512_store_ps(scale[b], halves_at(packed, 0));
        if (dtype == DType::kQ4_1) _mm512_store_ps(offset[b], halves_at(packed, 2));
        advance(packed, dtype_info(dtype).bytes);
    }
}

} // namespace
} // namespace bonsai::cpu::amx
