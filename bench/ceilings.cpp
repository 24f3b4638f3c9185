// SPDX-License-Identifier: Apache-2.0
#include "ceilings.h"

#include <cstdint>
#include <ctime>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bonsai::bench {

double thread_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

namespace {

double memory_ceiling() {
    static const std::vector<uint64_t> words(size_t{1} << 25, 1); // 256 MB, more than caches hold
    const double start = thread_seconds();
    uint64_t sum = 0;
    for (const uint64_t word : words)
        sum += word;
    const double seconds = thread_seconds() - start;
    return sum == words.size() ? static_cast<double>(8 * sum) / seconds * 1e-9 : 0;
}

} // namespace

#if defined(__x86_64__)
namespace {

__attribute__((target("avx2"))) double bytes_ceiling() {
    constexpr int kSteps = 200000;
    __m256i sum[12] = {};
    for (int j = 0; j < 12; ++j)
        __asm__ volatile("" : "+x"(sum[j])); // or the compiler sees twelve equal sums
    __m256i a = _mm256_set1_epi8(1), w[2] = {_mm256_set1_epi8(2), _mm256_set1_epi8(1)};
    const double start = thread_seconds();
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) {
            __asm__ volatile("" : "+x"(a)); // or equal products are computed once
            sum[j] = _mm256_add_epi16(sum[j], _mm256_maddubs_epi16(w[j & 1], a));
        }
    }
    const double seconds = thread_seconds() - start;
    for (int j = 0; j < 12; ++j)
        __asm__ volatile("" ::"x"(sum[j]));
    return 64.0 * 12 * kSteps / seconds * 1e-9;
}
__attribute__((target("avx2,fma"))) double floats_ceiling() {
    constexpr int kSteps = 200000;
    __m256 sum[12] = {};
    for (int j = 0; j < 12; ++j)
        __asm__ volatile("" : "+x"(sum[j])); // or the compiler sees twelve equal sums
    __m256 a = _mm256_set1_ps(0.5f), w = _mm256_set1_ps(0.25f);
    const double start = thread_seconds();
    for (int i = 0; i < kSteps; ++i) {
        __asm__ volatile("" : "+x"(a));
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j)
            sum[j] = _mm256_fmadd_ps(a, w, sum[j]);
    }
    const double seconds = thread_seconds() - start;
    for (int j = 0; j < 12; ++j)
        __asm__ volatile("" ::"x"(sum[j]));
    return 16.0 * 12 * kSteps / seconds * 1e-9;
}

} // namespace

double ceiling(Ceiling kind) {
    if (kind == Ceiling::kMemory) return memory_ceiling();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return kind == Ceiling::kBytes ? bytes_ceiling() : floats_ceiling();
}
#else
double ceiling(Ceiling kind) {
    return kind == Ceiling::kMemory ? memory_ceiling() : 0;
}
#endif

} // namespace bonsai::bench
