// SPDX-License-Identifier: Apache-2.0
#include "core/system.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "core/thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
// after windows.h
#include <psapi.h>
#endif

namespace bonsai {

#if defined(__linux__)

namespace {

// First line of a small system file; empty when it cannot be read.
std::string first_line(const std::string& path) {
    char text[512] = "";
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        if (!std::fgets(text, sizeof text, file)) text[0] = 0;
        std::fclose(file);
    }
    return text;
}

// The number behind `key` at the start of a line ("MemTotal:   123 kB", "inactive_file 123").
uint64_t number_behind(const char* path, const char* key) {
    std::FILE* file = std::fopen(path, "r");
    if (!file) return 0;
    char line[256];
    uint64_t value = 0;
    while (std::fgets(line, sizeof line, file)) {
        if (std::strncmp(line, key, std::strlen(key)) == 0) {
            value = std::strtoull(line + std::strlen(key), nullptr, 10);
            break;
        }
    }
    std::fclose(file);
    return value;
}

// cgroup v2, as containers see it. 0: no limit.
uint64_t cgroup_bytes(const char* name) {
    return std::strtoull(first_line(std::string("/sys/fs/cgroup/") + name).c_str(), nullptr, 10);
}

} // namespace

MemoryInfo system_memory() {
    MemoryInfo info;
    info.total = number_behind("/proc/meminfo", "MemTotal:") * 1024;
    info.available = number_behind("/proc/meminfo", "MemAvailable:") * 1024;
    if (const uint64_t limit = cgroup_bytes("memory.max")) {
        // The group is charged for cached file pages, such as those of the model itself, which the
        // system drops on demand.
        const char* stat = "/sys/fs/cgroup/memory.stat";
        const uint64_t cached =
            number_behind(stat, "active_file ") + number_behind(stat, "inactive_file ");
        const uint64_t charged = cgroup_bytes("memory.current");
        const uint64_t used = charged > cached ? charged - cached : 0;
        info.total = std::min(info.total, limit);
        info.available = std::min(info.available, limit > used ? limit - used : 1); // 0: unknown
    }
    return info;
}

uint64_t resident_bytes() {
    return number_behind("/proc/self/status", "VmRSS:") * 1024;
}

std::string cpu_name() {
    std::FILE* file = std::fopen("/proc/cpuinfo", "r");
    if (!file) return "CPU";
    char line[512];
    std::string name = "CPU";
    while (std::fgets(line, sizeof line, file)) {
        const char* colon = std::strchr(line, ':');
        if (std::strncmp(line, "model name", 10) == 0 && colon) {
            name = colon + 2;
            name.erase(name.find_last_not_of(" \r\n") + 1);
            break;
        }
    }
    std::fclose(file);
    return name;
}

int default_thread_count() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return std::max(1u, std::thread::hardware_concurrency());
    // Two hardware threads of one core share its multipliers: count (package, core) pairs.
    std::set<std::pair<std::string, std::string>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &set)) continue;
        const std::string topology =
            "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        const std::string core = first_line(topology + "core_id");
        cores.emplace(first_line(topology + "physical_package_id"),
                      core.empty() ? std::to_string(cpu) : core);
    }
    int count = std::max<int>(1, static_cast<int>(cores.size()));
    unsigned long long quota = 0, period = 0;
    if (std::sscanf(first_line("/sys/fs/cgroup/cpu.max").c_str(), "%llu %llu", &quota, &period) ==
            2 &&
        period > 0)
        count = std::min(count, std::max(1, static_cast<int>(quota / period)));
    return count;
}

#elif defined(__APPLE__)

MemoryInfo system_memory() {
    MemoryInfo info;
    size_t size = sizeof info.total;
    sysctlbyname("hw.memsize", &info.total, &size, nullptr, 0);
    vm_statistics64_data_t vm;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&vm),
                          &count) == KERN_SUCCESS)
        info.available = (uint64_t(vm.free_count) + vm.inactive_count + vm.purgeable_count) *
                         vm_kernel_page_size;
    return info;
}

uint64_t resident_bytes() {
    mach_task_basic_info info;
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, reinterpret_cast<task_info_t>(&info),
                  &count) != KERN_SUCCESS)
        return 0;
    return info.resident_size;
}

std::string cpu_name() {
    char name[128] = "CPU";
    size_t size = sizeof name;
    sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0);
    return name;
}

int default_thread_count() {
    int cores = 0;
    size_t size = sizeof cores;
    sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0);
    return cores > 0 ? cores : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#elif defined(_WIN32)

MemoryInfo system_memory() {
    MEMORYSTATUSEX status;
    status.dwLength = sizeof status;
    MemoryInfo info;
    if (GlobalMemoryStatusEx(&status)) {
        info.total = status.ullTotalPhys;
        info.available = status.ullAvailPhys;
    }
    return info;
}

uint64_t resident_bytes() {
    PROCESS_MEMORY_COUNTERS counters;
    return K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters)
               ? counters.WorkingSetSize
               : 0;
}

std::string cpu_name() {
    char name[128] = "";
    DWORD size = sizeof name;
    RegGetValueA(HKEY_LOCAL_MACHINE, "HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0",
                 "ProcessorNameString", RRF_RT_REG_SZ, nullptr, name, &size);
    std::string out = name;
    out.erase(out.find_last_not_of(' ') + 1);
    return out.empty() ? "CPU" : out;
}

// Physical cores of which the process may use at least one hardware thread. Machines with more than
// 64 of those are cut into groups; the process begins in one of them, and this counts that one.
int default_thread_count() {
    DWORD_PTR allowed = 0, system = 0;
    DWORD size = 0;
    GetLogicalProcessorInformation(nullptr, &size);
    std::vector<SYSTEM_LOGICAL_PROCESSOR_INFORMATION> infos(size / sizeof(infos[0]));
    int cores = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &allowed, &system) && !infos.empty() &&
        GetLogicalProcessorInformation(infos.data(), &size)) {
        for (const auto& info : infos)
            cores += info.Relationship == RelationProcessorCore &&
                     (info.ProcessorMask & (allowed ? allowed : ~DWORD_PTR{0})) != 0;
    }
    return cores > 0 ? cores : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#else

MemoryInfo system_memory() {
    return MemoryInfo();
}
uint64_t resident_bytes() {
    return 0;
}
std::string cpu_name() {
    return "CPU";
}
int default_thread_count() {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#endif

} // namespace bonsai
