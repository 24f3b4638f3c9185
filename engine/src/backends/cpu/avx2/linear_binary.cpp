// SPDX-License-Identifier: Apache-2.0
// linear_fast for binary weights: sums of four activations looked up instead of multiplied
// Layout:   the bits of four successive weights of a column are an index of 4 bits. 32 columns of
//           indices fill a register; the tile's columns lie side by side for each four of K.
// Maths:    for every four x codes a table of the 16 sums +-a +-b +-c +-d, each 512 too high, in
//           two bytes of 5 bits: vpshufb looks up 32 columns at once, and bytes hold the sums of 8
//           such steps (8 * 31 < 256). vpmaddubsw joins low + 32 * high in 16 bits, which hold a
//           group: at most 32 * 1020, less 32 * 512. Exact, and scaled as products are: results
//           equal those of linear_fast.cpp bit for bit.
// Work:     a row's table (1 KB a group) is made once for up to 768 columns, indices once for up to
//           128 rows; both stay in the first-level cache.
// Roofline: two shuffles and two adds are 256 operations; vpmaddubsw and vpaddw are 64. Cores with
//           two shuffle units start them in a cycle, and joining adds a fifth.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

#include "backends/cpu/avx2/linear.h"
#include "backends/cpu/compiler.h"

namespace bonsai::cpu::avx2 {
namespace {

constexpr int kLanes = 32;         // columns of a register of indices
constexpr int kSteps = kGroup / 4; // look-ups of a group
constexpr int kStepsInByte = 8;
constexpr int kEntries = 16;
constexpr int kAbove = 512; // what entries are too high
static_assert(kBinaryCols % kLanes == 0, "whole registers");

// Sums for two steps.
struct Table {
    alignas(32) uint8_t low[2][kEntries];
    alignas(32) uint8_t high[2][kEntries];
};

struct Memory {
    alignas(64) uint8_t index[kSteps][kBinaryCols];
    alignas(64) Table tables[kSteps / 2]; // of one row
    alignas(64) float scale[kBinaryCols];
    alignas(64) float sums[kBinaryRows][kBinaryCols];
};

// Signs of four codes in the entries 0 .. 7, in both halves of registers; and what makes their
// sums, of codes that are 128 too high, kAbove too high.
struct Signs {
    alignas(32) int8_t of[2][kLanes] = {};
    alignas(32) int16_t add[kEntries] = {};
    constexpr Signs() {
        for (int half = 0; half < 2; ++half) {
            for (int e = 0; e < 8; ++e) {
                int plus = 0;
                for (int i = 0; i < 4; ++i) {
                    const int sign = (e >> i & 1) != 0 ? 1 : -1;
                    of[e / 4][16 * half + e % 4 * 4 + i] = static_cast<int8_t>(sign);
                    plus += sign;
                }
                add[8 * half + e] = static_cast<int16_t>(kAbove - 128 * plus);
            }
        }
    }
};
constexpr Signs kSigns;

__m256i load(const void* p) {
    return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// The tables of a group of x codes, two steps at a time, one in each half of the registers. Entry
// 15 - e has the signs of entry e turned round.
void fill_tables(const int8_t* q, Table* tables) {
    const __m256i first = load(kSigns.of[0]), second = load(kSigns.of[1]), add = load(kSigns.add);
    const __m256i one = _mm256_set1_epi16(1), low = _mm256_set1_epi16(31);
    const __m256i twice = _mm256_set1_epi16(2 * kAbove);
    const __m256i spread = _mm256_broadcastsi128_si256(_mm_set1_epi32(0x03020100));
    const __m256i backwards = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1));
    const auto sums = [&](__m256i x, __m256i signs) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(x, signs), one);
    };
    for (int s = 0; s < kSteps; s += 2) {
        uint64_t eight;
        std::memcpy(&eight, q + 4 * s, sizeof eight);
        eight ^= 0x8080808080808080u;
        const __m256i halves = _mm256_setr_epi64x(static_cast<int64_t>(eight), 0,
                                                  static_cast<int64_t>(eight >> 32), 0);
        const __m256i x = _mm256_shuffle_epi8(halves, spread);
        const __m256i lower =
            _mm256_add_epi16(_mm256_packs_epi32(sums(x, first), sums(x, second)), add);
        const __m256i upper = _mm256_sub_epi16(twice, _mm256_shuffle_epi8(lower, backwards));
        const auto store = [](uint8_t (&to)[2][kEntries], __m256i bytes) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(to[0]), bytes);
        };
        store(tables[s / 2].low,
              _mm256_packus_epi16(_mm256_and_si256(lower, low), _mm256_and_si256(upper, low)));
        store(tables[s / 2].high,
              _mm256_packus_epi16(_mm256_srli_epi16(lower, 5), _mm256_srli_epi16(upper, 5)));
    }
}

// Byte b of rows 0 .. 15 (lower halves) and 16 .. 31 to register b: four times the same
// interleaving turns the 8 bits of row and byte by half.
void transpose(__m256i (&r)[16]) {
    for (int turn = 0; turn < 4; ++turn) {
        __m256i t[16];
        for (int i = 0; i < 8; ++i) {
            t[2 * i] = _mm256_unpacklo_epi8(r[i], r[i + 8]);
            t[2 * i + 1] = _mm256_unpackhi_epi8(r[i], r[i + 8]);
        }
        std::memcpy(r, t, sizeof t);
    }
}

// Indices and scales of 32 columns from cols.begin on, at one group; those beyond the last repeat
// it. Columns 8 .. 15 and 16 .. 23 change places: unpacking bytes in `join` works within halves.
void unpack(const Tensor& w, Range cols, int64_t k, uint8_t* index, float* scale) {
    const DTypeInfo& info = dtype_info(DType::kQ1_0);
    __m128i bits[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        const int64_t n = cols.begin + i < cols.end ? cols.begin + i : cols.end - 1;
        const uint8_t* block =
            static_cast<const uint8_t*>(w.data) + (n * w.stride + k) / info.block * info.bytes;
        uint16_t half;
        std::memcpy(&half, block, sizeof half);
        scale[i] = _cvtsh_ss(half);
        const int place = i / 8 == 1 ? i + 8 : i / 8 == 2 ? i - 8 : i;
        bits[place] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + sizeof half));
    }
    __m256i bytes[16];
    for (int i = 0; i < 16; ++i)
        bytes[i] = _mm256_set_m128i(bits[i + 16], bits[i]);
    transpose(bytes);
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int i = 0; i < 16; ++i) {
        auto* to = reinterpret_cast<__m256i*>(index + 2 * i * kBinaryCols);
        _mm256_store_si256(to, _mm256_and_si256(bytes[i], nibble));
        _mm256_store_si256(to + kBinaryCols / kLanes,
                           _mm256_and_si256(_mm256_srli_epi16(bytes[i], 4), nibble));
    }
}

// Sums of the low and of the high bytes of a few steps to sums in 16 bits, 16 columns each.
BONSAI_ALWAYS_INLINE void join(__m256i low, __m256i high, __m256i (&sum)[2]) {
    const __m256i factors = _mm256_set1_epi16(32 << 8 | 1);
    add16(sum[0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low, high), factors));
    add16(sum[1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low, high), factors));
}

BONSAI_ALWAYS_INLINE __m256i both_halves(const uint8_t* entries) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
}

// sums += scale * (8 sums in 16 bits)
BONSAI_ALWAYS_INLINE void add_scaled(float* sums, __m128i eight, __m256 scale) {
    const __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight));
    _mm256_store_ps(sums, _mm256_fmadd_ps(value, scale, _mm256_load_ps(sums)));
}

// One row by 32, 64 or 96 columns over a group.
template <int kRegisters>
void multiply(const Table* tables, const uint8_t* index, float x_scale, const float* scale,
              float* sums) {
    __m256i sum[kRegisters][2];
    for (auto& s : sum)
        s[0] = s[1] = _mm256_set1_epi16(0);
    for (int s = 0; s < kSteps; s += kStepsInByte) {
        __m256i low[kRegisters], high[kRegisters];
        BONSAI_UNROLL(8)
        for (int i = 0; i < kStepsInByte; ++i) {
            const Table& table = tables[(s + i) / 2];
            const __m256i low_bytes = both_halves(table.low[i % 2]);
            const __m256i high_bytes = both_halves(table.high[i % 2]);
            BONSAI_UNROLL(3)
            for (int c = 0; c < kRegisters; ++c) {
                const __m256i at = load(index + (s + i) * kBinaryCols + c * kLanes);
                const __m256i l = _mm256_shuffle_epi8(low_bytes, at);
                const __m256i h = _mm256_shuffle_epi8(high_bytes, at);
                if (i == 0)
                    low[c] = l, high[c] = h;
                else
                    add8(low[c], l), add8(high[c], h);
            }
        }
        BONSAI_UNROLL(3)
        for (int c = 0; c < kRegisters; ++c)
            join(low[c], high[c], sum[c]);
    }
    const __m256i above = _mm256_set1_epi16(kSteps * kAbove);
    const __m256 row = _mm256_set1_ps(x_scale);
    BONSAI_UNROLL(3)
    for (int c = 0; c < kRegisters; ++c) {
        BONSAI_UNROLL(2)
        for (int h = 0; h < 2; ++h) {
            const __m256i exact = _mm256_sub_epi16(sum[c][h], above);
            const int n = c * kLanes + h * 16;
            add_scaled(sums + n, _mm256_castsi256_si128(exact),
                       _mm256_mul_ps(_mm256_load_ps(scale + n), row));
            add_scaled(sums + n + 8, _mm256_extracti128_si256(exact, 1),
                       _mm256_mul_ps(_mm256_load_ps(scale + n + 8), row));
        }
    }
}

void multiply_row(const Memory& memory, float x_scale, int64_t cols, float* sums) {
    const auto at = [&](int64_t n, auto kernel) {
        kernel(memory.tables, memory.index[0] + n, x_scale, memory.scale + n, sums + n);
    };
    int64_t n = 0;
    for (; n + 3 * kLanes <= cols; n += 3 * kLanes)
        at(n, multiply<3>);
    if (n + 2 * kLanes == cols) at(n, multiply<2>);
    if (n + kLanes == cols) at(n, multiply<1>);
}

// Up to kBinaryRows x kBinaryCols of y.
void binary_tile(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                 Memory* memory) {
    const int64_t width = cols.end - cols.begin;
    const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
    std::memset(memory->sums, 0,
                sizeof memory->sums[0] * static_cast<size_t>(rows.end - rows.begin));
    for (int64_t k = 0; k < x.cols; k += kGroup) {
        for (int64_t n = 0; n < padded; n += kLanes)
            unpack(p.weight, {n < width ? cols.begin + n : cols.end - 1, cols.end}, k,
                   memory->index[0] + n, memory->scale + n);
        const float* x_scale = x.scale + k / kGroup * x.rows;
        for (int64_t m = rows.begin; m < rows.end; ++m) {
            const int8_t* q = x.q + m * x.stride + k;
            fill_tables(q, memory->tables);
            if (m + 1 < rows.end) { // too short a run of each row for the hardware to foresee
                _mm_prefetch(reinterpret_cast<const char*>(q + x.stride), _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char*>(q + x.stride + 64), _MM_HINT_T0);
            }
            multiply_row(*memory, x_scale[m], padded, memory->sums[m - rows.begin]);
        }
    }
    for (int64_t m = rows.begin; m < rows.end; ++m)
        finish_tile(memory->sums[m - rows.begin], 1, p, {m, m + 1}, cols);
}

} // namespace

bool linear_binary(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                   Scratch& scratch) {
    auto* memory = static_cast<Memory*>(scratch.get(sizeof(Memory)));
    if (memory == nullptr) return false;
    for (int64_t n = cols.begin; n < cols.end; n += kBinaryCols)
        for (int64_t m = rows.begin; m < rows.end; m += kBinaryRows)
            binary_tile(x, p, {m, at_most(m + kBinaryRows, rows.end)},
                        {n, at_most(n + kBinaryCols, cols.end)}, memory);
    return true;
}

} // namespace bonsai::cpu::avx2
#endif
