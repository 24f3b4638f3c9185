// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/features.h"

#include <cstdlib>
#include <cstring>
#include <string>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace bonsai::cpu {

namespace {

#if defined(_MSC_VER) && defined(_M_X64)
uint32_t detect() {
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    const bool fma = leaf1[2] >> 12 & 1, f16c = leaf1[2] >> 29 & 1, osxsave = leaf1[2] >> 27 & 1;
    const bool saved = osxsave && (_xgetbv(0) & 6) == 6;
    return saved && fma && f16c && (leaf7[1] >> 5 & 1) ? kFeatureAvx2 : 0;
}
#elif defined(__x86_64__)
uint32_t detect() {
    __builtin_cpu_init(); // also asks the system whether it saves the wide registers
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    return avx2 ? kFeatureAvx2 : 0;
}
#else
uint32_t detect() {
    return 0;
}
#endif

} // namespace

uint32_t detected_features() {
    static const uint32_t features = detect();
    return features;
}

bool supports(uint32_t features, Level level) {
    const LevelInfo& info = level_info(level);
    if ((features & info.needs) != info.needs) return false;
    return level == Level::kGeneric || supports(features, info.below);
}

std::vector<Level> levels_of(uint32_t features) {
    std::vector<Level> levels;
    for (const LevelInfo& info : level_list())
        if (supports(features, info.level)) levels.push_back(info.level);
    return levels;
}

Status choose_level(uint32_t features, const char* wanted, Level* out) {
    const std::vector<Level> allowed = levels_of(features);
    *out = allowed.back();
    if (!wanted || !*wanted) return Status();
    std::string names;
    for (const LevelInfo& info : level_list()) {
        if (std::strcmp(wanted, info.name) == 0) {
            if (!supports(features, info.level))
                return fail(ErrorCode::kUnsupported,
                            "BONSAI_CPU=%s: this processor offers %s at "
                            "most",
                            wanted, level_info(*out).name);
            *out = info.level;
            return Status();
        }
        names += names.empty() ? info.name : std::string(", ") + info.name;
    }
    return fail(ErrorCode::kArgument, "BONSAI_CPU=%s: expected one of %s", wanted, names.c_str());
}

Status chosen_level(Level* out) {
    return choose_level(detected_features(), std::getenv("BONSAI_CPU"), out);
}

} // namespace bonsai::cpu
