// SPDX-License-Identifier: Apache-2.0
// Packed formats: layouts against bytes written by ggml (Q8_0, Q4_0, Q4_1, Q1_0) or packed from the
// format's description with numpy (PQ2_0, PTQ1_0), and properties of the packers.
#include "core/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "test.h"

using namespace bonsai;

namespace {

const DType kAll[kDTypeCount] = {DType::kF32,  DType::kF16,   DType::kBF16,
                                 DType::kQ8_0, DType::kQ4_0,  DType::kQ4_1,
                                 DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0};

// A small generator with a fixed sequence: values in [-1, 1).
struct Random {
    uint64_t state = 1;
    uint32_t bits() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 32);
    }
    float value() { return static_cast<float>(bits()) * 0x1p-31f - 1.0f; }
};

std::vector<uint8_t> pack(DType dtype, const std::vector<float>& x) {
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> packed(row_bytes(dtype, n));
    CHECK_OK(quantize_rows(dtype, x.data(), 1, n, packed.data()));
    return packed;
}
std::vector<float> unpack(DType dtype, const std::vector<uint8_t>& packed, size_t n) {
    std::vector<float> x(n);
    dequantize_row(dtype, packed.data(), x.data(), static_cast<int64_t>(n));
    return x;
}

// The largest error of a packed value whose block has the magnitude `largest` and whose value is x.
float error_bound(DType dtype, float x, float largest) {
    const float half_scale = largest * 0x1p-11f; // rounding of an F16 scale
    switch (dtype) {
    case DType::kF32:
        return 0;
    case DType::kF16:
        return std::fabs(x) * 0x1p-11f + 0x1p-25f;
    case DType::kBF16:
        return std::fabs(x) * 0x1p-8f;
    case DType::kQ8_0:
        return largest / 127 * 0.5f + 2 * half_scale;
    case DType::kQ4_0:
        return largest / 8 + 2 * half_scale; // the far end of [-8, 7] is cut off
    case DType::kQ4_1:
        return 2 * largest / 15 * 0.5f + 4 * half_scale;
    case DType::kQ1_0:
        return 2 * largest;
    default:
        return largest * 0.5f + 2 * half_scale;
    }
}

} // namespace

TEST(layouts_match_reference_bytes) {
    std::FILE* file = std::fopen(BONSAI_TEST_DATA "/ggml_blocks.bin", "rb");
    CHECK(file != nullptr);
    if (file == nullptr) return;
    // Per type: 512 floats, their packed bytes, the 512 floats these decode to.
    const DType types[] = {DType::kQ8_0, DType::kQ4_0,  DType::kQ4_1,
                           DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0};
    for (DType dtype : types) {
        std::vector<float> x(512), decoded(512);
        std::vector<uint8_t> bytes(row_bytes(dtype, 512));
        CHECK(std::fread(x.data(), 4, 512, file) == 512);
        CHECK(std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size());
        CHECK(std::fread(decoded.data(), 4, 512, file) == 512);
        CHECK(pack(dtype, x) == bytes);
        CHECK(unpack(dtype, bytes, 512) == decoded);
    }
    std::fclose(file);
}

TEST(packing_error_is_bounded) {
    Random random;
    for (DType dtype : kAll) {
        const size_t block = dtype_info(dtype).block;
        for (float magnitude : {1e-3f, 1.0f, 3e4f}) {
            std::vector<float> x(512);
            for (float& v : x)
                v = random.value() * magnitude;
            const std::vector<float> y = unpack(dtype, pack(dtype, x), x.size());
            int outside = 0;
            for (size_t b = 0; b < x.size(); b += block) {
                float largest = 0;
                for (size_t i = b; i < b + block; ++i)
                    largest = std::max(largest, std::fabs(x[i]));
                for (size_t i = b; i < b + block; ++i)
                    // A scale below 2^-14 is a subnormal F16: off by up to 2^-25, times a code.
                    outside +=
                        std::fabs(y[i] - x[i]) > error_bound(dtype, x[i], largest) + 0x1p-18f;
            }
            CHECK(outside == 0);
        }
    }
}

TEST(decoded_values_pack_to_themselves) {
    Random random;
    for (DType dtype : kAll) {
        std::vector<float> x(1024);
        for (float& v : x)
            v = random.value();
        const std::vector<float> once = unpack(dtype, pack(dtype, x), x.size());
        const std::vector<float> twice = unpack(dtype, pack(dtype, once), x.size());
        float worst = 0;
        for (size_t i = 0; i < x.size(); ++i)
            worst = std::max(worst, std::fabs(once[i] - twice[i]));
        // Scales of types with few codes come back exactly. With more codes the largest decoded
        // value need not be the largest code, so the scale may move by its rounding.
        const bool exact = dtype != DType::kQ8_0 && dtype != DType::kQ4_1;
        CHECK(exact ? worst == 0 : worst < 2e-3f);
    }
}

TEST(every_code_of_every_position_decodes) {
    // A block with one code set at a time: catches crossed positions that smooth data may hide.
    for (DType dtype : {DType::kQ1_0, DType::kPQ2_0, DType::kPTQ1_0}) {
        for (int position = 0; position < kGroup; ++position) {
            std::vector<float> x(kGroup, dtype == DType::kQ1_0 ? -1.0f : 0.0f);
            x[static_cast<size_t>(position)] = 1.0f;
            CHECK(unpack(dtype, pack(dtype, x), kGroup) == x);
        }
    }
}

TEST(zeros_and_tiny_values_pack_safely) {
    for (DType dtype : kAll) {
        for (float value : {0.0f, 1e-44f, 1e-38f, -1e-38f}) {
            const std::vector<float> y =
                unpack(dtype, pack(dtype, std::vector<float>(128, value)), 128);
            for (float v : y)
                CHECK(std::fabs(v) <=
                      std::fabs(value) * 1.01f); // BF16 rounds its subnormals by up to 0.5 %
        }
    }
}

TEST(unrepresentable_values_are_refused) {
    std::vector<float> x(256, 1.0f);
    std::vector<uint8_t> out(1024);
    for (DType dtype : kAll) {
        for (float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
            x[130] = bad;
            CHECK_FAILS(quantize_rows(dtype, x.data(), 2, 128, out.data()), ErrorCode::kArgument,
                        "row 1, column 2");
        }
    }
    x[130] = 7e4f;
    CHECK_FAILS(quantize_rows(DType::kF16, x.data(), 2, 128, out.data()), ErrorCode::kArgument,
                "65504");
    CHECK_OK(quantize_rows(DType::kBF16, x.data(), 2, 128, out.data()));
    CHECK_FAILS(quantize_rows(DType::kQ1_0, x.data(), 4, 64, out.data()), ErrorCode::kArgument,
                "multiple of 128");
}

TEST(half_round_trips_every_value) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x10000; ++h) {
        const auto bits = static_cast<uint16_t>(h);
        const float value = f16_to_f32(bits);
        if (std::isnan(value))
            wrong += !std::isnan(f16_to_f32(f32_to_f16(value)));
        else
            wrong += f32_to_f16(value) != bits;
        const float wide = bf16_to_f32(bits);
        if (std::isnan(wide))
            wrong += !std::isnan(bf16_to_f32(f32_to_bf16(wide)));
        else
            wrong += f32_to_bf16(wide) != bits;
    }
    CHECK(wrong == 0);
}

TEST(half_rounds_to_nearest_even) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x7bff; ++h) {
        const double low = f16_to_f32(static_cast<uint16_t>(h));
        const double high = f16_to_f32(static_cast<uint16_t>(h + 1));
        const auto middle = static_cast<float>((low + high) / 2); // exact: f32 has 13 more bits
        const uint32_t even = h + (h & 1);
        wrong += f32_to_f16(middle) != even || f32_to_f16(-middle) != (even | 0x8000u);
        wrong += f32_to_f16(std::nextafter(middle, 0.0f)) != h;
        wrong += f32_to_f16(std::nextafter(middle, 1e9f)) != h + 1;
    }
    CHECK(wrong == 0);
    CHECK(f32_to_f16(65519.0f) == 0x7bff);
    CHECK(f32_to_f16(65520.0f) == 0x7c00);
    CHECK(f32_to_bf16(f32_from_bits(0x3f808000)) == 0x3f80);
    CHECK(f32_to_bf16(f32_from_bits(0x3f818000)) == 0x3f82);
    CHECK(f32_to_bf16(f32_from_bits(0x7f7fffff)) == 0x7f80);
}
