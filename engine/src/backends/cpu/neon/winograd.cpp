// SPDX-License-Identifier: Apache-2.0
// winograd (see backends/cpu/winograd.h) in registers of 4 floats.
#if defined(__aarch64__)
#include "backends/cpu/winograd.h"

#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu {
namespace {

struct Lanes4 {
    using V = float32x4_t;
    static constexpr int kLanes = 4;
    static constexpr int kRows = 8;  // 16 accumulators, two weights and a broadcast value
    static constexpr int kAhead = 1; // floats for each k: 8 times a register tile make a block
    static V zero() { return vdupq_n_f32(0.0f); }
    static V set(float x) { return vdupq_n_f32(x); }
    static V broadcast(const float* x) { return vld1q_dup_f32(x); }
    static V load(const float* x) { return vld1q_f32(x); }
    static V loadu(const float* x) { return vld1q_f32(x); }
    static void store(float* to, V x) { vst1q_f32(to, x); }
    static void storeu(float* to, V x) { vst1q_f32(to, x); }
    static V add(V a, V b) { return vaddq_f32(a, b); }
    static V sub(V a, V b) { return vsubq_f32(a, b); }
    static V mul(V a, V b) { return vmulq_f32(a, b); }
    static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
    static void accumulate(V& sum, V a, V b) { sum = vfmaq_f32(sum, a, b); }
    static void prefetch(const float* x) { __builtin_prefetch(x); }
    static V silu(V x) { return silu4(x); }
    static void dequantize(DType dtype, const uint8_t* packed, float* out, int64_t n) {
        neon::dequantize_row(dtype, packed, out, n);
    }
};

} // namespace

void overlay_neon_winograd(KernelTable& table) {
    table.winograd_weight_floats = Winograd<Lanes4>::weight_floats;
    table.winograd_weights = Winograd<Lanes4>::transform_weights;
    table.winograd = Winograd<Lanes4>::convolve;
    table.winograd_panel = Winograd<Lanes4>::kPanel;
}

} // namespace bonsai::cpu
#endif
