// SPDX-License-Identifier: Apache-2.0
// Which backends this build holds, in order of preference.
#include "backends/backend.h"
#include "backends/cpu/backend.h"
#include "core/system.h"

namespace bonsai {

std::vector<DeviceInfo> list_devices() {
    const cpu::Level best = cpu::best_level(cpu::detected_features());
    const MemoryInfo memory = system_memory();
    return {{"cpu", cpu_name(), cpu::level_info(best).name, memory.total, memory.available,
             default_thread_count()}};
}

std::vector<CpuLevel> list_cpu_levels() {
    std::vector<CpuLevel> levels;
    for (const cpu::LevelInfo& info : cpu::level_list())
        levels.push_back({info.name, cpu::supports(cpu::detected_features(), info.level)});
    return levels;
}

Status create_backend(const std::string& device, const BackendOptions& options,
                      std::unique_ptr<Backend>* out) {
    if (device != "auto" && device != "cpu")
        return fail(ErrorCode::kArgument, "device %s is not there; this build has: cpu",
                    device.c_str());
    cpu::Level level;
    BONSAI_TRY(cpu::chosen_level(&level));
    return cpu::CpuBackend::create(options, level, out);
}

} // namespace bonsai
