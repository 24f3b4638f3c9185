// SPDX-License-Identifier: Apache-2.0
// A linear layer with random weights of any type, and its input as codes: what the tests of
// products and of codes share.
#pragma once

#include <algorithm>

#include "core/half.h"
#include "core/quantize.h"
#include "ops/op_test.h"

namespace op_test {

using namespace bonsai::cpu;

constexpr DType kAllTypes[kDTypeCount] = {DType::kF32,  DType::kF16,   DType::kBF16,
                                          DType::kQ8_0, DType::kQ4_0,  DType::kQ4_1,
                                          DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0};

constexpr float kCanary = -12345.75f;

// A matrix whose rows are followed, and which as a whole is surrounded, by values that must not
// change.
struct Guarded {
    static constexpr int64_t kPad = 19;
    Guarded(int64_t r, int64_t c)
        : rows(r), cols(c), data(static_cast<size_t>((r + 2) * (c + kPad)), kCanary),
          view{DType::kF32, r, c, c + kPad, data.data() + (c + kPad)} {}
    Guarded(const Guarded&) = delete;
    bool intact() const {
        for (int64_t r = -1; r <= rows; ++r)
            for (int64_t c = 0; c < cols + kPad; ++c)
                if ((r < 0 || r == rows || c >= cols) && view.row(r)[c] != kCanary) return false;
        return true;
    }
    std::vector<float> values() const {
        std::vector<float> all;
        for (int64_t r = 0; r < rows; ++r)
            all.insert(all.end(), view.row(r), view.row(r) + cols);
        return all;
    }
    int64_t rows, cols;
    std::vector<float> data;
    Tensor view;
};

// Same bytes, so that NaN equals NaN.
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A layer with its operands. Codes are random bytes: every code of every format occurs, also -128,
// ternary 3 and bytes that no packer writes; scales are random, of both signs, some zero.
struct Layer {
    Layer(DType dtype, int64_t m, int64_t n, int64_t k, uint64_t seed = 7)
        : x(m, k), out(m, n), bias(1, n), gate(1, n) {
        Random random(seed);
        const DTypeInfo& info = dtype_info(dtype);
        bytes.resize(row_bytes(dtype, k) * static_cast<size_t>(n));
        for (size_t b = 0; b < bytes.size(); b += info.bytes)
            fill_block(dtype, &bytes[b], random);
        for (int64_t i = 0; i < m * k; ++i)
            x.view.row(i / k)[i % k] = random.uniform();
        for (int64_t i = 0; i < n; ++i) {
            bias.view.f32()[i] = random.uniform();
            gate.view.f32()[i] = random.uniform();
        }
        projection.weight = Tensor{dtype, n, k, k, bytes.data()};
        projection.out = out.view;
    }
    static void fill_block(DType dtype, uint8_t* block, Random& random) {
        const DTypeInfo& info = dtype_info(dtype);
        if (info.block == 1) {
            const float value = random.uniform();
            CHECK_OK(quantize_rows(dtype, &value, 1, 1, block));
            return;
        }
        for (uint32_t i = 0; i < info.bytes; ++i)
            block[i] = static_cast<uint8_t>(random.bits() >> 24);
        const float scale = random.integer(0, 15) == 0 ? 0.0f : random.uniform() * 0.05f;
        set_half(dtype == DType::kPTQ1_0 ? block + 26 : block, scale);
        if (dtype == DType::kQ4_1) set_half(block + 2, random.uniform() * 0.3f);
    }
    static void set_half(uint8_t* p, float value) {
        const uint16_t h = f32_to_f16(value);
        p[0] = static_cast<uint8_t>(h);
        p[1] = static_cast<uint8_t>(h >> 8);
    }
    void fill_out(float value) {
        for (int64_t m = 0; m < out.rows; ++m)
            std::fill(out.view.row(m), out.view.row(m) + out.cols, value);
    }

    Guarded x, out, bias, gate;
    std::vector<uint8_t> bytes;
    Projection projection;
};

struct Codes {
    Codes(const KernelTable& table, const Tensor& x)
        : memory(quantized_rows_bytes(x.rows, x.cols) / 4 + 16) {
        const uintptr_t at = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
        view = quantized_rows_at(reinterpret_cast<void*>(at), x.rows, x.cols);
        table.quantize_rows(x, view, {0, x.rows});
    }
    // The matrix that the codes stand for.
    std::vector<float> decoded() const {
        std::vector<float> x;
        for (int64_t i = 0; i < view.rows * view.cols; ++i) {
            const int64_t m = i / view.cols, k = i % view.cols;
            x.push_back(view.scale[k / kGroup * view.rows + m] *
                        static_cast<float>(view.q[m * view.stride + k]));
        }
        return x;
    }
    std::vector<float> memory;
    QuantizedRows view;
};

} // namespace op_test
