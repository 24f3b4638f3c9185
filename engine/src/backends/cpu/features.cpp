// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/features.h"

#include <cstdlib>
#include <cstring>
#include <string>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace bonsai::cpu {

namespace {

#if defined(__x86_64__) || (defined(_MSC_VER) && defined(_M_X64))
enum Register { kEax, kEbx, kEcx, kEdx };

#if defined(_MSC_VER)
void read_cpuid(int leaf, int part, uint32_t out[4]) {
    int registers[4];
    __cpuidex(registers, leaf, part);
    std::memcpy(out, registers, sizeof registers);
}
uint64_t read_xcr0() {
    return _xgetbv(0);
}
#else
void read_cpuid(int leaf, int part, uint32_t out[4]) {
    __cpuid_count(leaf, part, out[kEax], out[kEbx], out[kEcx], out[kEdx]);
}
uint64_t read_xcr0() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}
#endif

// Linux gives the 8 KB of tile registers only to processes that ask (kernel 5.16 and later). No
// other system is asked: there the level counts as missing.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// Bit numbers: Intel SDM volume 2A, CPUID; XCR0: volume 1, 13.3.
uint32_t detect() {
    uint32_t leaf0[4], leaf1[4], leaf7[4], leaf7_1[4] = {};
    const auto bit = [](const uint32_t* leaf, Register r, int n) {
        return (leaf[r] >> n & 1) != 0;
    };
    read_cpuid(0, 0, leaf0);
    if (leaf0[kEax] < 7) return 0;
    read_cpuid(1, 0, leaf1);
    read_cpuid(7, 0, leaf7);
    if (leaf7[kEax] >= 1) read_cpuid(7, 1, leaf7_1);
    if (!bit(leaf1, kEcx, 27)) return 0; // xgetbv is there and the system uses it
    const uint64_t saved = read_xcr0();
    const bool saves_256 = (saved & 0x6) == 0x6, saves_512 = (saved & 0xe6) == 0xe6,
               saves_tiles = (saved & 0x60000) == 0x60000;

    uint32_t found = 0;
    if (saves_256 && bit(leaf1, kEcx, 12) && bit(leaf1, kEcx, 29) && bit(leaf7, kEbx, 5))
        found |= kFeatureAvx2;
    if (saves_256 && bit(leaf7_1, kEax, 4)) found |= kFeatureAvxVnni;
    if (saves_512 && bit(leaf7, kEbx, 16) && bit(leaf7, kEbx, 17) && bit(leaf7, kEbx, 30) &&
        bit(leaf7, kEbx, 31) && bit(leaf7, kEcx, 11))
        found |= kFeatureAvx512;
    if (saves_tiles && bit(leaf7, kEdx, 22) && bit(leaf7, kEdx, 24) && bit(leaf7, kEdx, 25) &&
        bit(leaf7_1, kEax, 5) && may_use_tiles())
        found |= kFeatureAmx;
    return found;
}
#elif defined(__aarch64__)
// Sets that a program may use are told by the system, which alone can read the feature registers.
#if defined(__linux__)
bool has_dotprod() {
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; // HWCAP_ASIMDDP
}
bool has_i8mm() {
    return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; // HWCAP2_I8MM
}
#elif defined(__APPLE__)
bool has(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() {
    return has("hw.optional.arm.FEAT_DotProd");
}
bool has_i8mm() {
    return has("hw.optional.arm.FEAT_I8MM");
}
#elif defined(_WIN32)
// The numbers of winnt.h, which older copies of it lack.
bool has_dotprod() {
    return IsProcessorFeaturePresent(43) != 0; // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
}
bool has_i8mm() {
    return IsProcessorFeaturePresent(66) != 0; // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
}
#else
bool has_dotprod() {
    return false;
}
bool has_i8mm() {
    return false;
}
#endif

uint32_t detect() {
    return kFeatureNeon | (has_dotprod() ? kFeatureDotprod : 0) | (has_i8mm() ? kFeatureI8mm : 0);
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

Level best_level(uint32_t features) {
    return levels_of(features).back();
}

Status choose_level(uint32_t features, const char* wanted, Level* out) {
    *out = best_level(features);
    if (!wanted || !*wanted) return Status();
    std::string names;
    for (const LevelInfo& info : level_list()) {
        if (std::strcmp(wanted, info.name) == 0) {
            if (!supports(features, info.level))
                return fail(ErrorCode::kUnsupported,
                            "BONSAI_CPU=%s: this processor lacks it; its best level is %s", wanted,
                            level_info(*out).name);
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
