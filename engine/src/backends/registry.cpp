// SPDX-License-Identifier: Apache-2.0
// Which backends this build holds, in order of preference.
#include "backends/backend.h"
#include "backends/cpu/backend.h"
#include "core/system.h"
#ifdef BONSAI_HAVE_CUDA
#include "backends/cuda/backend.h"
#include "backends/cuda/devices.h"
#endif

namespace bonsai {

namespace {

// Devices beside the processor; `*why` says what is missing where one is.
std::vector<DeviceInfo> other_devices(std::string* why) {
#ifdef BONSAI_HAVE_CUDA
    return cuda::devices(why);
#else
    *why = "this build holds no CUDA backend (configure with -DBONSAI_CUDA=ON)";
    return {};
#endif
}

Status create_other([[maybe_unused]] const std::string& id,
                    [[maybe_unused]] const BackendOptions& options,
                    [[maybe_unused]] std::unique_ptr<Backend>* out) {
#ifdef BONSAI_HAVE_CUDA
    return cuda::CudaBackend::create(options, std::stoi(id.substr(5)), out); // behind "cuda:"
#else
    return fail(ErrorCode::kInternal, "device %s is listed but cannot be made", id.c_str());
#endif
}

} // namespace

std::vector<DeviceInfo> list_devices() {
    std::string why;
    std::vector<DeviceInfo> devices = other_devices(&why);
    const cpu::Level best = cpu::best_level(cpu::detected_features());
    const MemoryInfo memory = system_memory();
    devices.push_back({"cpu", cpu_name(), cpu::level_info(best).name, memory.total,
                       memory.available, default_thread_count()});
    return devices;
}

std::vector<CpuLevel> list_cpu_levels() {
    std::vector<CpuLevel> levels;
    for (const cpu::LevelInfo& info : cpu::level_list())
        levels.push_back({info.name, cpu::supports(cpu::detected_features(), info.level)});
    return levels;
}

Status create_backend(const std::string& device, const BackendOptions& options,
                      std::unique_ptr<Backend>* out) {
    if (device != "cpu") {
        std::string why, ids;
        for (const DeviceInfo& info : other_devices(&why)) {
            // "cuda" is the first CUDA device.
            if (device == "auto" || device == info.id ||
                device == info.id.substr(0, info.id.find(':')))
                return create_other(info.id, options, out);
            ids += info.id + ", ";
        }
        if (device != "auto")
            return fail(ErrorCode::kArgument, "device %s is not there; this build has: %scpu%s%s",
                        device.c_str(), ids.c_str(),
                        why.empty() || device.substr(0, 4) != "cuda" ? "" : "; CUDA: ",
                        device.substr(0, 4) != "cuda" ? "" : why.c_str());
    }
    cpu::Level level;
    BONSAI_TRY(cpu::chosen_level(&level));
    return cpu::CpuBackend::create(options, level, out);
}

} // namespace bonsai
