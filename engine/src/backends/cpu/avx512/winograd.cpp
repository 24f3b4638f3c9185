// SPDX-License-Identifier: Apache-2.0
// winograd (see backends/cpu/winograd.h) in registers of 16 floats.
#include "backends/cpu/winograd.h"

#ifdef __AVX512F__

#include "backends/cpu/avx2/unpack.h"
#include "backends/cpu/avx512/simd.h"

namespace bonsai::cpu {
namespace {

struct Lanes16 {
    using V = __m512;
    static constexpr int kLanes = 16;
    static constexpr int kRows = 12; // 24 accumulators, two weights and a broadcast value
    static constexpr int kAhead = 8; // floats for each k: 6 times a register tile make a block
    static V zero() { return _mm512_setzero_ps(); }
    static V set(float x) { return _mm512_set1_ps(x); }
    static V broadcast(const float* x) { return _mm512_set1_ps(*x); }
    static V load(const float* x) { return _mm512_load_ps(x); }
    static V loadu(const float* x) { return _mm512_loadu_ps(x); }
    static void store(float* to, V x) { _mm512_store_ps(to, x); }
    static void storeu(float* to, V x) { _mm512_storeu_ps(to, x); }
    static V add(V a, V b) { return _mm512_add_ps(a, b); }
    static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
#if defined(__GNUC__)
    // In place: intrinsics alone make gcc 12 copy accumulators of an unrolled loop.
    static void accumulate(V& sum, V a, V b) {
        __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    }
#else
    static void accumulate(V& sum, V a, V b) { sum = _mm512_fmadd_ps(a, b, sum); }
#endif
    static void prefetch(const float* x) {
        _mm_prefetch(reinterpret_cast<const char*>(x), _MM_HINT_T0);
    }
    static V silu(V x) { return silu16(x); }
    static void dequantize(DType dtype, const uint8_t* packed, float* out, int64_t n) {
        avx2::dequantize_row(dtype, packed, out, n);
    }
};

} // namespace

void overlay_avx512_winograd(KernelTable& table) {
    table.winograd_weight_floats = Winograd<Lanes16>::weight_floats;
    table.winograd_weights = Winograd<Lanes16>::transform_weights;
    table.winograd = Winograd<Lanes16>::convolve;
    table.winograd_panel = Winograd<Lanes16>::kPanel;
}

} // namespace bonsai::cpu

#else

namespace bonsai::cpu {
void overlay_avx512_winograd(KernelTable&) {}
} // namespace bonsai::cpu

#endif // __AVX512F__
