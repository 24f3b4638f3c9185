// SPDX-License-Identifier: Apache-2.0
// Panels of floats (see backends/cpu/float_panel.h) in registers of 4 words.
#if defined(__aarch64__)
#include "backends/cpu/float_panel.h"

#include "backends/cpu/neon/linear.h"
#include "backends/cpu/neon/simd.h"

namespace bonsai::cpu::neon {
namespace {

struct Lanes4 {
    using V = float32x4_t;
    static constexpr int kLanes = 4;
    static V set(float x) { return vdupq_n_f32(x); }
    static void store(float* to, V x) { vst1q_f32(to, x); }
    static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
    static V load_words(const uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
    static V load_halves(const uint16_t* x) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
    }
    // To the second-level cache: the first one is full of panels.
    static void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

    static V half(V words, int j) {
        const uint32x4_t v = vreinterpretq_u32_f32(words);
        return vcvt_f32_f16(vreinterpret_f16_u16(j == 0 ? vmovn_u32(v) : vshrn_n_u32(v, 16)));
    }
    static V brain(V words, int j) {
        const uint32x4_t v = vreinterpretq_u32_f32(words);
        return vreinterpretq_f32_u32(j == 0 ? vshlq_n_u32(v, 16)
                                            : vandq_u32(v, vdupq_n_u32(0xFFFF0000u)));
    }
    static V code(V words, int j) {
        const int32x4_t above = vshlq_s32(vreinterpretq_s32_f32(words), vdupq_n_s32(24 - 8 * j));
        return vcvtq_f32_s32(vshrq_n_s32(above, 24));
    }

    static void transpose(V (&w)[4]) {
        const float64x2_t ab0 = vreinterpretq_f64_f32(vzip1q_f32(w[0], w[1]));
        const float64x2_t ab1 = vreinterpretq_f64_f32(vzip2q_f32(w[0], w[1]));
        const float64x2_t cd0 = vreinterpretq_f64_f32(vzip1q_f32(w[2], w[3]));
        const float64x2_t cd1 = vreinterpretq_f64_f32(vzip2q_f32(w[2], w[3]));
        w[0] = vreinterpretq_f32_f64(vzip1q_f64(ab0, cd0));
        w[1] = vreinterpretq_f32_f64(vzip2q_f64(ab0, cd0));
        w[2] = vreinterpretq_f32_f64(vzip1q_f64(ab1, cd1));
        w[3] = vreinterpretq_f32_f64(vzip2q_f64(ab1, cd1));
    }

    static void unpack(DType dtype, const uint8_t* packed, uint8_t* codes) {
        GroupScales scales;
        unpack_group(dtype, packed, reinterpret_cast<int8_t*>(codes), &scales);
    }
};
static_assert(FloatPanel<Lanes4>::kCols == kFloatPanel, "panels of the products");

} // namespace

void unpack_panel(const Tensor& w, int64_t row, int64_t k, int64_t n, float* panel) {
    FloatPanel<Lanes4>::unpack(w, row, k, n, panel);
}

} // namespace bonsai::cpu::neon
#endif
