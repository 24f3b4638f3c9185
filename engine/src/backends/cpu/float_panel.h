// SPDX-License-Identifier: Apache-2.0
// Packed weights to panels of floats, for the kernel files of a level, which give it their
// registers as a struct of static functions (`Lanes`). Everything is local to the including file:
// no code of one level can reach another through the linker.
// Layout: W packed, see core/quantize.h; panel [K][kCols] f32, a column for each row of W.
// Maths:  the same bits as dequantize_row.
// Work:   registers of packed weights of kLanes rows are transposed as words of 32 bits, which hold
//         one weight of F32, two of F16 and BF16 or four codes, and expanded there: a quarter to
//         all of the shuffles that floats would take. Codes of fewer than 8 bits are first
//         unpacked, 128 of a row at a time.
#pragma once

#include <string.h>

#include "backends/cpu/compiler.h"
#include "backends/cpu/table.h"

namespace bonsai::cpu {
namespace {

template <class L> struct FloatPanel {
    using V = typename L::V;
    static constexpr int kLanes = L::kLanes;
    static constexpr int kCols = 2 * kLanes;
    static constexpr int kBytes = 4 * kLanes; // of a register
    static constexpr int kBlocks = kGroup / kBlock;

    // What a word holds.
    enum Kind { kFloat, kHalves, kBrains, kCodes };
    static constexpr int weights_of(Kind kind) {
        return kind == kFloat ? 1 : kind == kCodes ? 4 : 2;
    }

    // Weight j of each word; codes without scale.
    template <Kind K> static BONSAI_ALWAYS_INLINE V expand(V words, int j) {
        if constexpr (K == kFloat)
            return words;
        else if constexpr (K == kHalves)
            return L::half(words, j);
        else if constexpr (K == kBrains)
            return L::brain(words, j);
        else
            return L::code(words, j);
    }

    // A register of each of kLanes rows to kLanes columns.
    template <Kind K>
    static BONSAI_ALWAYS_INLINE void words_to_columns(const uint8_t* const (&rows)[kLanes],
                                                      int64_t at, V scale, V offset, float* to) {
        constexpr int kEach = weights_of(K);
        V words[kLanes];
        BONSAI_UNROLL(8)
        for (int i = 0; i < kLanes; ++i)
            words[i] = L::load_words(rows[i] + at);
        L::transpose(words);
        BONSAI_UNROLL(8)
        for (int i = 0; i < kLanes; ++i) {
            BONSAI_UNROLL(4)
            for (int j = 0; j < kEach; ++j) {
                const V w = expand<K>(words[i], j);
                // The product is exact: the only rounding is that of Q4_1's sum.
                L::store(to + (i * kEach + j) * kCols, K == kCodes ? L::fma(w, scale, offset) : w);
            }
        }
    }

    template <Kind K>
    static void floats(const uint8_t* const (&rows)[kLanes], int64_t depth, float* to) {
        constexpr int kStep = kLanes * weights_of(K);
        const int64_t bytes = depth * (4 / weights_of(K));
        const V none = L::set(0.0f);
        int64_t at = 0;
        for (; at + kBytes <= bytes; at += kBytes, to += kStep * kCols)
            words_to_columns<K>(rows, at, none, none, to);
        if (at == bytes) return;
        uint8_t ends[kLanes][kBytes] = {};
        const uint8_t* end_rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            memcpy(ends[i], rows[i] + at, static_cast<size_t>(bytes - at));
            end_rows[i] = ends[i];
        }
        words_to_columns<K>(end_rows, 0, none, none, to);
    }

    // Up to kGroup codes of 8 bits of kLanes rows.
    struct Codes {
        uint8_t codes[kLanes][kGroup];
        uint16_t scale[kBlocks][kLanes], offset[kBlocks][kLanes]; // f16
    };

    static void unpack_row(DType dtype, const uint8_t* packed, int64_t depth, int i, Codes* out) {
        const DTypeInfo& info = dtype_info(dtype);
        const bool wide = info.block == kGroup; // one scale, in PTQ1_0 behind the codes
        const int64_t blocks = depth / kBlock, step = wide ? 0 : info.bytes;
        const uint8_t* scale = dtype == DType::kPTQ1_0 ? packed + 26 : packed;
        for (int64_t b = 0; b < blocks; ++b) {
            memcpy(&out->scale[b][i], scale + b * step, sizeof(uint16_t));
            if (dtype == DType::kQ4_1)
                memcpy(&out->offset[b][i], scale + b * step + 2, sizeof(uint16_t));
            if (dtype == DType::kQ8_0)
                memcpy(out->codes[i] + b * kBlock, packed + b * step + 2, kBlock);
        }
        if (dtype == DType::kQ8_0) return;
        uint8_t part[kBlocks * 20] = {}; // blocks of Q4_1 have 20 bytes
        if (depth < kGroup) memcpy(part, packed, static_cast<size_t>(blocks * step));
        L::unpack(dtype, depth < kGroup ? part : packed, out->codes[i]);
    }

    static void codes(DType dtype, const uint8_t* const (&rows)[kLanes], int64_t depth, float* to) {
        const DTypeInfo& info = dtype_info(dtype);
        Codes group;
        memset(group.offset, 0, sizeof group.offset);
        const uint8_t* code_rows[kLanes];
        for (int i = 0; i < kLanes; ++i)
            code_rows[i] = group.codes[i];
        for (int64_t k = 0; k < depth; k += kGroup) {
            const int64_t count = depth - k < kGroup ? depth - k : kGroup;
            for (int i = 0; i < kLanes; ++i)
                unpack_row(dtype, rows[i] + k / info.block * info.bytes, count, i, &group);
            for (int64_t at = 0; at < count; at += kBytes, to += kBytes * kCols)
                words_to_columns<kCodes>(code_rows, at, L::load_halves(group.scale[at / kBlock]),
                                         L::load_halves(group.offset[at / kBlock]), to);
        }
    }

    // Weights [k, k + depth) of rows [row, row + kCols) of w; the last row again where it has
    // fewer. Up to 2 kLanes - 1 more of K than asked are written.
    static void unpack(const Tensor& w, int64_t row, int64_t k, int64_t depth, float* panel) {
        const DTypeInfo& info = dtype_info(w.dtype);
        for (int c = 0; c < kCols; c += kLanes) {
            const uint8_t* rows[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const int64_t n = row + c + i < w.rows ? row + c + i : w.rows - 1;
                rows[i] = static_cast<const uint8_t*>(w.data) +
                          (n * w.stride + k) / info.block * info.bytes;
                // What comes next in K: of runs as short as these the processor foresees few.
                const int64_t bytes = depth / info.block * info.bytes;
                for (int64_t at = 0; at < bytes; at += 64)
                    L::prefetch(rows[i] + bytes + at);
            }
            if (w.dtype == DType::kF32)
                floats<kFloat>(rows, depth, panel + c);
            else if (w.dtype == DType::kF16)
                floats<kHalves>(rows, depth, panel + c);
            else if (w.dtype == DType::kBF16)
                floats<kBrains>(rows, depth, panel + c);
            else
                codes(w.dtype, rows, depth, panel + c);
        }
    }
};

} // namespace
} // namespace bonsai::cpu
