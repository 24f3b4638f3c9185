// SPDX-License-Identifier: Apache-2.0
// Codes at every CPU level: activations as int8 with their scales and sums, and weights read back.
#include <cmath>
#include <limits>

#include "ops/linear_case.h"

using namespace op_test;

TEST(quantized_rows_agree_between_levels) {
    Layer layer(DType::kPQ2_0, 12, 1, 512);
    const float specials[] = {
        std::nanf(""), std::numeric_limits<float>::infinity(), 1e38f, 1e-38f, 1e-42f, 0.0f, -0.0f,
        127.0f};
    for (int64_t m = 0; m < 8; ++m)
        layer.x.view.row(m)[m * 60] = specials[m];
    for (int64_t k = 0; k < 512; ++k) {
        layer.x.view.row(8)[k] =
            static_cast<float>(k - 256) * 0.5f; // ties once the largest is 127 or 128
        layer.x.view.row(9)[k] = 0;
        layer.x.view.row(10)[k] *= 1e-36f;
        layer.x.view.row(11)[k] *= 1e-25f;
    }
    const Codes reference(kernel_table(Level::kGeneric), layer.x.view);
    for (const KernelTable* table : levels()) {
        const Codes codes(*table, layer.x.view);
        const QuantizedRows &a = codes.view, &b = reference.view;
        for (int64_t m = 0; m < 12; ++m)
            CHECK(std::memcmp(a.q + m * a.stride, b.q + m * b.stride, 512) == 0);
        for (int64_t i = 0; i < 12 * 4; ++i) {
            CHECK(a.scale[i] == b.scale[i] || (std::isnan(a.scale[i]) && std::isnan(b.scale[i])));
            CHECK(a.sum[i] == b.sum[i]);
        }
        CHECK(std::memcmp(a.block_sum, b.block_sum, 12 * 16 * sizeof(int32_t)) == 0);
    }
}

TEST(quantized_rows_are_nearest) {
    for (const KernelTable* table : levels()) {
        Layer layer(DType::kPQ2_0, 5, 1, 256);
        const Codes codes(*table, layer.x.view);
        const std::vector<float> x = layer.x.values(), y = codes.decoded();
        int worse = 0, wrong_sums = 0;
        for (size_t i = 0; i < x.size(); ++i)
            worse += std::fabs(x[i] - y[i]) >
                     0.50001f * codes.view.scale[i % 256 / kGroup * 5 + i / 256];
        for (int64_t b = 0; b < 5 * 256 / kBlock; ++b) {
            int32_t sum = 0;
            for (int64_t k = b * kBlock; k < (b + 1) * kBlock; ++k)
                sum += codes.view.q[k / 256 * codes.view.stride + k % 256];
            wrong_sums += sum != codes.view.block_sum[b % 8 * 5 + b / 8];
        }
        CHECK(worse == 0);
        CHECK(wrong_sums == 0);
    }
}

TEST(dequantize_row_agrees_between_levels) {
    for (DType dtype : kAllTypes)
        for (const KernelTable* table : levels()) {
            const Layer layer(dtype, 1, 4, 1024);
            const bool block = is_block_quantized(dtype);
            for (int64_t n : block ? std::vector<int64_t>{128, 1024}
                                   : std::vector<int64_t>{1, 7, 8, 29, 1024}) {
                std::vector<float> expected(static_cast<size_t>(n)),
                    got(static_cast<size_t>(n) + 1, kCanary);
                dequantize_row(dtype, layer.bytes.data(), expected.data(), n);
                table->dequantize_row(dtype, layer.bytes.data(), got.data(), n);
                CHECK(got.back() == kCanary);
                got.pop_back();
                CHECK(same(got, expected));
            }
        }
}

// Every byte of the base-3 packing, also those that no packer writes.
TEST(every_ternary_byte_decodes_alike) {
    for (const KernelTable* table : levels())
        for (int value = 0; value < 256; ++value) {
            std::vector<uint8_t> block(28, static_cast<uint8_t>(value));
            Layer::set_half(&block[26], 1.0f);
            std::vector<float> expected(kGroup), got(kGroup);
            dequantize_row(DType::kPTQ1_0, block.data(), expected.data(), kGroup);
            table->dequantize_row(DType::kPTQ1_0, block.data(), got.data(), kGroup);
            CHECK(same(got, expected));
        }
}
