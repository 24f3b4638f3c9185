// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/table.h"

#include <iterator>
#include <mutex>

#include "backends/cpu/features.h"
#include "core/work_memory.h"

namespace bonsai::cpu {

Scratch::~Scratch() {
    release();
}

void Scratch::release() {
    free_work_memory(data_, size_);
    data_ = nullptr;
    size_ = 0;
}

void* Scratch::get(size_t bytes) {
    if (bytes <= size_) return data_;
    release();
    data_ = allocate_work_memory(bytes);
    size_ = data_ ? bytes : 0;
    return data_;
}

static constexpr LevelInfo kLevels[] = {
    {Level::kGeneric, "generic", Level::kGeneric, 0, overlay_generic},
#if defined(__x86_64__) || defined(_M_X64)
    {Level::kAvx2, "avx2", Level::kGeneric, kFeatureAvx2, overlay_avx2},
#endif
// Defined by the build where the compiler knows the instructions.
#if defined(BONSAI_LEVEL_AVXVNNI)
    {Level::kAvxVnni, "avxvnni", Level::kAvx2, kFeatureAvxVnni, overlay_avxvnni},
#endif
#if defined(BONSAI_LEVEL_AVX512)
    {Level::kAvx512, "avx512", Level::kAvx2, kFeatureAvx512, overlay_avx512},
#endif
#if defined(BONSAI_LEVEL_AMX)
    {Level::kAmx, "amx", Level::kAvx512, kFeatureAmx, overlay_amx},
#endif
#if defined(__aarch64__)
    {Level::kNeon, "neon", Level::kGeneric, kFeatureNeon, overlay_neon},
#endif
#if defined(BONSAI_LEVEL_DOTPROD)
    {Level::kDotprod, "dotprod", Level::kNeon, kFeatureDotprod, overlay_dotprod},
#endif
#if defined(BONSAI_LEVEL_I8MM)
    {Level::kI8mm, "i8mm", Level::kDotprod, kFeatureI8mm, overlay_i8mm},
#endif
};

LevelList level_list() {
    return {std::begin(kLevels), std::end(kLevels)};
}

const LevelInfo& level_info(Level level) {
    for (const LevelInfo& info : kLevels)
        if (info.level == level) return info;
    return kLevels[0];
}

static KernelTable build(const LevelInfo& info) {
    KernelTable table{};
    if (info.level != Level::kGeneric) table = build(level_info(info.below));
    info.overlay(table);
    table.level = info.name;
    return table;
}

const KernelTable& kernel_table(Level level) {
    // Each built when first asked for: an overlay is itself compiled for its level.
    static KernelTable tables[std::size(kLevels)];
    static std::once_flag built[std::size(kLevels)];
    const LevelInfo& info = level_info(level);
    const auto i = static_cast<size_t>(&info - kLevels);
    std::call_once(built[i], [&] { tables[i] = build(info); });
    return tables[i];
}

void overlay_generic(KernelTable& table) {
    overlay_generic_linear(table);
    overlay_generic_rows(table);
    overlay_generic_attention(table);
    overlay_generic_conv(table);
}

#if defined(__x86_64__) || defined(_M_X64)
void overlay_avx2(KernelTable& table) {
    overlay_avx2_linear(table);
    overlay_avx2_rows(table);
    overlay_avx2_attention(table);
    overlay_avx2_attention_fast(table);
    overlay_avx2_conv(table);
    overlay_avx2_winograd(table);
}
#endif

#if defined(BONSAI_LEVEL_AVX512)
void overlay_avx512(KernelTable& table) {
    overlay_avx512_linear(table);
    overlay_avx512_attention_fast(table);
    overlay_avx512_winograd(table);
}
#endif

#if defined(BONSAI_LEVEL_AMX)
void overlay_amx(KernelTable& table) {
    overlay_amx_linear(table);
    table.linear_needs_sums = false; // its weight codes are signed
    overlay_amx_attention_fast(table);
}
#endif

#if defined(__aarch64__)
void overlay_neon(KernelTable& table) {
    overlay_neon_linear(table);
    overlay_neon_rows(table);
    overlay_neon_attention(table);
    overlay_neon_conv(table);
    overlay_neon_winograd(table);
}
#endif

} // namespace bonsai::cpu
