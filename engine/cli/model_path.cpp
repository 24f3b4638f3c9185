// SPDX-License-Identifier: Apache-2.0
#include "model_path.h"

#include <cstdlib>
#include <filesystem>
#include <utility>

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

#include "failure.h"
#include "hub_model.h"

namespace bonsai::cli {
namespace {

namespace fs = std::filesystem;

bool is_demo(const fs::path& model) {
    return model.filename().u8string().rfind("seedling-", 0) == 0;
}

// The first model of a folder in the order of names, a demo model last; empty if there is none.
fs::path first_model(const fs::path& folder) {
    std::error_code error;
    fs::path first;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) { // a range-based loop would throw when a later read fails
        const fs::path& path = entry->path();
        if (path.extension() != ".gguf") continue;
        if (first.empty() ||
            std::make_pair(is_demo(path), path) < std::make_pair(is_demo(first), first))
            first = path;
    }
    return first;
}

// $BONSAI_MODEL in UTF-8, or empty.
std::string model_of_environment() {
#if defined(_WIN32)
    const wchar_t* variable = _wgetenv(L"BONSAI_MODEL");
    return variable != nullptr ? fs::path(variable).u8string() : "";
#else
    const char* variable = std::getenv("BONSAI_MODEL");
    return variable != nullptr ? variable : "";
#endif
}

} // namespace

std::filesystem::path program_path() {
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

ModelPath find_model(const std::optional<std::string>& given) {
    const std::string named = given ? *given : model_of_environment();
    if (given && named.empty())
        throw Failure(kExitUsage, "--model is empty: expected a GGUF file or hub:owner/name");
    if (given || !named.empty()) return {is_hub_name(named) ? hub_model(named) : named};
    const fs::path program = program_path();
    fs::path found;
    if (!program.empty())
        found = first_model(program.parent_path().parent_path() / "share" / "bonsai");
    if (found.empty()) found = first_model(fs::u8path(BONSAI_DATA));
    if (found.empty())
        throw Failure(kExitUsage,
                      "no model: give one with -m MODEL.gguf or set BONSAI_MODEL; `bonsai-convert "
                      "prism-ml/bonsai-image-ternary-4B-unpacked -o MODEL.gguf` makes one");
    return {found.u8string(), is_demo(found)};
}

} // namespace bonsai::cli
