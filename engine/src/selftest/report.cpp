// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/describe.h"
#include "core/system.h"
#include "selftest/self_test.h"

namespace bonsai {

namespace {

const char* system_name() {
#if defined(_WIN32)
    return "Windows";
#elif defined(__APPLE__)
    return "macOS";
#elif defined(__linux__)
    return "Linux";
#else
    return "unknown system";
#endif
}

const char* architecture() {
#if defined(__x86_64__) || defined(_M_X64)
    return "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "aarch64";
#else
    return "unknown architecture";
#endif
}

std::string gigabytes(uint64_t bytes) {
    return bytes == 0 ? "unknown" : format("%.1f GB", static_cast<double>(bytes) / 1e9);
}

std::string device_line(const DeviceInfo& d) {
    std::string out = d.id + ": " + d.name + ", " + d.features;
    if (d.threads > 0) out += format(", %d thread%s", d.threads, d.threads == 1 ? "" : "s");
    return out + ", memory " + gigabytes(d.memory_free) + " free of " + gigabytes(d.memory_total);
}

std::string device_json(const DeviceInfo& d) {
    return "{\"id\": " + quoted(d.id) + ", \"name\": " + quoted(d.name) +
           ", \"features\": " + quoted(d.features) +
           format(", \"threads\": %d, \"memory_total\": %llu, \"memory_free\": %llu}", d.threads,
                  static_cast<unsigned long long>(d.memory_total),
                  static_cast<unsigned long long>(d.memory_free));
}

} // namespace

std::string self_test_text(const SelfTestReport& report) {
    std::string out =
        format("bonsai %s on %s, %s\n", BONSAI_VERSION, system_name(), architecture());
    out += "processor: " + cpu_name() + "\nCPU levels:";
    for (const CpuLevel& level : list_cpu_levels())
        out += " " + level.name + (level.available ? " yes," : " no,");
    out.back() = '\n';
    const MemoryInfo memory = system_memory();
    out += "memory: " + gigabytes(memory.available) + " free of " + gigabytes(memory.total) +
           "\ndevices:\n";
    for (const DeviceInfo& device : list_devices())
        out += "  " + device_line(device) + "\n";
    out += "tested: " + device_line(report.device) + "\n\n";
    size_t width = 0;
    for (const CheckResult& check : report.checks)
        width = std::max(width, check.name.size());
    out += format("%-*s  result  %9s  %9s  %9s\n", static_cast<int>(width), "check", "error",
                  "allowed", "ms");
    for (const CheckResult& c : report.checks) {
        out += format("%-*s  %-6s  %9.2g  %9.2g  %9.3f\n", static_cast<int>(width), c.name.c_str(),
                      c.passed ? "ok" : "WRONG", c.error, c.allowed, 1000 * c.seconds);
        if (!c.passed) out += "    " + c.message + "\n";
    }
    const int failures = report.failures();
    return out + format("\n%d of %d checks passed in %.2f s\n",
                        static_cast<int>(report.checks.size()) - failures,
                        static_cast<int>(report.checks.size()), report.seconds);
}

std::string self_test_json(const SelfTestReport& report) {
    std::string out = "{\"version\": " + quoted(BONSAI_VERSION) +
                      ", \"system\": " + quoted(system_name()) +
                      ", \"architecture\": " + quoted(architecture()) +
                      ", \"processor\": " + quoted(cpu_name()) + ", \"cpu_levels\": [";
    const char* comma = "";
    for (const CpuLevel& level : list_cpu_levels()) {
        out += format("%s{\"name\": \"%s\", \"available\": %s}", comma, level.name.c_str(),
                      level.available ? "true" : "false");
        comma = ", ";
    }
    const MemoryInfo memory = system_memory();
    out += format("], \"memory_total\": %llu, \"memory_free\": %llu, \"devices\": [",
                  static_cast<unsigned long long>(memory.total),
                  static_cast<unsigned long long>(memory.available));
    comma = "";
    for (const DeviceInfo& device : list_devices()) {
        out += comma + device_json(device);
        comma = ", ";
    }
    out += "], \"tested\": " + device_json(report.device) + ", \"checks\": [";
    comma = "";
    for (const CheckResult& c : report.checks) {
        out += comma + ("{\"name\": " + quoted(c.name)) +
               ", \"passed\": " + (c.passed ? "true" : "false") +
               ", \"error\": " + number_text(c.error, 6) +
               ", \"allowed\": " + number_text(c.allowed, 6) +
               ", \"seconds\": " + number_text(c.seconds, 6) +
               ", \"message\": " + quoted(c.message) + "}";
        comma = ", ";
    }
    return out + format("], \"failures\": %d, \"seconds\": %s}", report.failures(),
                        number_text(report.seconds, 6).c_str());
}

} // namespace bonsai
