// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/features.h"

#include <cstdlib>
#include <cstring>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace bonsai::cpu {

namespace {

constexpr Level kLevels[] = {Level::kGeneric, Level::kAvx2};

#if defined(_MSC_VER) && defined(_M_X64)
bool has_avx2() {
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    const bool fma = leaf1[2] >> 12 & 1, f16c = leaf1[2] >> 29 & 1, osxsave = leaf1[2] >> 27 & 1;
    return fma && f16c && osxsave && (_xgetbv(0) & 6) == 6 && (leaf7[1] >> 5 & 1);
}
#elif defined(__x86_64__) || defined(_M_X64)
bool has_avx2() {
    __builtin_cpu_init(); // also asks the system whether it saves the wide registers
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
#else
bool has_avx2() {
    return false;
}
#endif

} // namespace

Level detected_level() {
    static const Level level = has_avx2() ? Level::kAvx2 : Level::kGeneric;
    return level;
}

const char* level_name(Level level) {
    switch (level) {
    case Level::kGeneric:
        return "generic";
    case Level::kAvx2:
        return "avx2";
    }
    return "unknown";
}

Status chosen_level(Level* out) {
    *out = detected_level();
    const char* wanted = std::getenv("BONSAI_CPU");
    if (!wanted || !*wanted) return Status();
    for (const Level level : kLevels) {
        if (std::strcmp(wanted, level_name(level)) != 0) continue;
        if (level > *out)
            return fail(ErrorCode::kUnsupported, "BONSAI_CPU=%s: this processor offers %s at most",
                        wanted, level_name(*out));
        *out = level;
        return Status();
    }
    return fail(ErrorCode::kArgument, "BONSAI_CPU=%s: expected generic or avx2", wanted);
}

} // namespace bonsai::cpu
