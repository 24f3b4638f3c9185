// SPDX-License-Identifier: Apache-2.0
// winograd (see backends/cpu/winograd.h) in registers of 8 floats.
#include "backends/cpu/winograd.h"

#ifdef __AVX2__

#include "backends/cpu/avx2/linear.h"
#include "backends/cpu/avx2/simd.h"

namespace bonsai::cpu {
namespace {

struct Lanes8 {
    using V = __m256;
    static constexpr int kLanes = 8;
    static constexpr int kRows = 6;  // 12 accumulators, two weights and a broadcast value
    static constexpr int kAhead = 2; // floats for each k: 11 times a register tile make a block
    static V zero() { return _mm256_setzero_ps(); }
    static V set(float x) { return _mm256_set1_ps(x); }
    static V broadcast(const float* x) { return _mm256_broadcast_ss(x); }
    static V load(const float* x) { return _mm256_load_ps(x); }
    static V loadu(const float* x) { return _mm256_loadu_ps(x); }
    static void store(float* to, V x) { _mm256_store_ps(to, x); }
    static void storeu(float* to, V x) { _mm256_storeu_ps(to, x); }
    static V add(V a, V b) { return _mm256_add_ps(a, b); }
    static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static void accumulate(V& sum, V a, V b) { avx2::multiply_add(sum, a, b); }
    static void prefetch(const float* x) {
        _mm_prefetch(reinterpret_cast<const char*>(x), _MM_HINT_T0);
    }
    static V silu(V x) { return silu8(x); }
    static void dequantize(DType dtype, const uint8_t* packed, float* out, int64_t n) {
        avx2::dequantize_row(dtype, packed, out, n);
    }
};

} // namespace

void overlay_avx2_winograd(KernelTable& table) {
    table.winograd_weight_floats = Winograd<Lanes8>::weight_floats;
    table.winograd_weights = Winograd<Lanes8>::transform_weights;
    table.winograd = Winograd<Lanes8>::convolve;
    table.winograd_panel = Winograd<Lanes8>::kPanel;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx2_winograd(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX2__
