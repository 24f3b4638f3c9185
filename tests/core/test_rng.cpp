// SPDX-License-Identifier: Apache-2.0
// Noise against values printed by torch 2.13.0 on x86-64 with AVX2:
//   torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)), as hexadecimal float bits.
#include "core/rng.h"

#include <cmath>
#include <cstring>

#include "test.h"
#include "torch_noise.inc"

using namespace bonsai;

static uint32_t bits(float value) {
    uint32_t out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

TEST(equal_to_torch_bit_for_bit) {
    for (const TorchNoise& expected : kTorchNoise) {
        std::vector<float> noise(expected.count);
        torch_cpu_randn(expected.seed, noise.data(), noise.size());
        uint64_t checksum = 0xcbf29ce484222325u; // FNV-1a over all values
        for (const float value : noise)
            checksum = (checksum ^ bits(value)) * 0x100000001b3u;
        CHECK(checksum == expected.checksum);
        for (int i = 0; i < 4; ++i) {
            CHECK(bits(noise[static_cast<size_t>(i)]) == expected.first[i]);
            CHECK(bits(noise[noise.size() - 4 + static_cast<size_t>(i)]) == expected.last[i]);
        }
    }
}

TEST(only_the_low_seed_bits_count) {
    float a[32], b[32];
    torch_cpu_randn(7, a, 32);
    torch_cpu_randn((uint64_t(1) << 32) + 7, b, 32);
    CHECK(std::memcmp(a, b, sizeof a) == 0);
}

TEST(is_standard_normal) {
    std::vector<float> noise(1 << 20);
    torch_cpu_randn(1, noise.data(), noise.size());
    double sum = 0, squares = 0, largest = 0;
    for (const float value : noise) {
        sum += value;
        squares += double(value) * value;
        largest = std::max(largest, double(std::fabs(value)));
    }
    CHECK(std::fabs(sum / noise.size()) < 0.005);
    CHECK(std::fabs(squares / noise.size() - 1) < 0.01);
    CHECK(largest < 5.77); // sqrt(2 * 24 * ln 2): a uniform has 24 bits
}
