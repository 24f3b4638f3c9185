// SPDX-License-Identifier: Apache-2.0
#include "model_path.h"

#include <cstdlib>
#include <filesystem>

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

#include "failure.h"

namespace bonsai::cli {
namespace {

namespace fs = std::filesystem;

// The running program's file; empty where the system does not tell.
fs::path program_path() {
    std::error_code error;
#if defined(_WIN32)
    wchar_t name[MAX_PATH];
    const DWORD length = GetModuleFileNameW(nullptr, name, MAX_PATH);
    return length > 0 && length < MAX_PATH ? fs::path(name) : fs::path();
#elif defined(__APPLE__)
    char name[4096];
    uint32_t size = sizeof(name);
    return _NSGetExecutablePath(name, &size) == 0 ? fs::canonical(name, error) : fs::path();
#else
    return fs::read_symlink("/proc/self/exe", error);
#endif
}

// The first model of a folder in the order of names, or empty.
std::string first_model(const fs::path& folder) {
    std::error_code error;
    fs::path first;
    for (const auto& entry : fs::directory_iterator(folder, error))
        if (entry.path().extension() == ".gguf" && (first.empty() || entry.path() < first))
            first = entry.path();
    return first.u8string();
}

} // namespace

std::string find_model(const std::optional<std::string>& given) {
    if (given) return *given;
    const char* variable = std::getenv("BONSAI_MODEL");
    if (variable != nullptr && variable[0] != 0) return variable;
    const fs::path program = program_path();
    std::string found;
    if (!program.empty())
        found = first_model(program.parent_path().parent_path() / "share" / "bonsai");
    if (found.empty()) found = first_model(fs::u8path(BONSAI_DATA));
    if (found.empty())
        throw Failure(kExitUsage,
                      "no model: give one with -m MODEL.gguf or set BONSAI_MODEL. To make one:\n"
                      "  bonsai-convert prism-ml/bonsai-image-ternary-4B-unpacked -o bonsai.gguf");
    return found;
}

} // namespace bonsai::cli
