// SPDX-License-Identifier: Apache-2.0
#include "hub_model.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <vector>

#if defined(_WIN32)
#include <io.h>
#include <process.h>
#else
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;
#endif

#include "failure.h"
#include "model_path.h"
#include "signals.h"

namespace bonsai::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "hub:";

fs::path environment(const char* name) {
#if defined(_WIN32)
    const wchar_t* value = _wgetenv(fs::path(name).c_str());
#else
    const char* value = std::getenv(name);
#endif
    return value != nullptr ? fs::path(value) : fs::path();
}

fs::path cache_folder() {
    if (const fs::path given = environment("BONSAI_CACHE"); !given.empty()) return given;
    if (const fs::path xdg = environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "bonsai";
#if defined(_WIN32)
    if (const fs::path local = environment("LOCALAPPDATA"); !local.empty()) return local / "bonsai";
    const fs::path home = environment("USERPROFILE");
#else
    const fs::path home = environment("HOME");
#endif
    return home / ".cache" / "bonsai";
}

bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// Letters, digits, _, - and .; begins with a letter, a digit or one of `first`.
bool is_word(std::string_view text, std::string_view first) {
    return !text.empty() && (is_letter(text[0]) || first.find(text[0]) != std::string_view::npos) &&
           std::all_of(text.begin(), text.end(),
                       [](char c) { return is_letter(c) || c == '_' || c == '-' || c == '.'; });
}

// What stands between slashes, empty where nothing does.
std::vector<std::string_view> parts_of(std::string_view path) {
    std::vector<std::string_view> parts;
    for (size_t start = 0; start <= path.size(); start += parts.back().size() + 1)
        parts.push_back(path.substr(start, path.find('/', start) - start));
    return parts;
}

bool are_words(const std::vector<std::string_view>& parts, std::string_view first) {
    return std::all_of(parts.begin(), parts.end(),
                       [&](std::string_view part) { return is_word(part, first); });
}

std::string with_dashes(const std::vector<std::string_view>& parts) {
    std::string out(parts.front());
    for (size_t i = 1; i < parts.size(); ++i)
        out += "--" + std::string(parts[i]);
    return out;
}

// "owner--name", or "owner--name@revision" with the slashes of the revision as dashes.
std::string slot_of(const std::string& name) {
    const std::string_view text = std::string_view(name).substr(kPrefix.size());
    const size_t at = text.find('@');
    const auto repository = parts_of(text.substr(0, at));
    bool good = repository.size() == 2 && are_words(repository, "");
    std::string slot = with_dashes(repository);
    if (at != std::string_view::npos) {
        const auto revision = parts_of(text.substr(at + 1));
        good = good && are_words(revision, "_");
        slot += "@" + with_dashes(revision);
    }
    if (!good)
        throw Failure(kExitUsage, name + ": expected hub:owner/name or hub:owner/name@revision");
    return slot;
}

// Runs the converter with its standard output on standard error, as ours may carry a picture.
// Returns its exit status, or -1 when there is no such program.
#if defined(_WIN32)
int run_converter(const fs::path& program, const std::string& name) {
    const std::wstring wide = fs::u8path(name).wstring();
    const wchar_t* arguments[] = {L"bonsai-convert", wide.c_str(), nullptr};
    const int out = _dup(1);
    _dup2(2, 1);
    const intptr_t status = _wspawnvp(_P_WAIT, program.c_str(), arguments);
    _dup2(out, 1);
    _close(out);
    return static_cast<int>(status);
}
#else
int run_converter(const fs::path& program, const std::string& name) {
    std::string word = "bonsai-convert", argument = name;
    char* arguments[] = {&word[0], &argument[0], nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    pid_t child = 0;
    const int error = posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return -1;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    } // a signal reaches both
    // 127: where posix_spawn reports a missing program by the child's exit.
    if (WIFEXITED(status)) return WEXITSTATUS(status) == 127 ? -1 : WEXITSTATUS(status);
    return kExitSignal;
}
#endif

// Beside this program, as both are installed into one folder, else wherever PATH says.
fs::path converter() {
#if defined(_WIN32)
    const fs::path file = "bonsai-convert.exe";
#else
    const fs::path file = "bonsai-convert";
#endif
    std::error_code error;
    const fs::path beside = program_path().parent_path() / file;
    return fs::is_regular_file(beside, error) ? beside : file;
}

} // namespace

bool is_hub_name(const std::string& model) {
    return model.compare(0, kPrefix.size(), kPrefix) == 0;
}

std::string hub_model(const std::string& name) {
    const fs::path model = cache_folder() / "hub" / slot_of(name) / "model.gguf";
    std::error_code error;
    if (fs::is_regular_file(model, error)) return model.u8string();
    const int status = run_converter(converter(), name);
    stop_if_signalled();
    if (status == -1)
        throw Failure(kExitModel,
                      name +
                          ": not in the cache yet, and bonsai-convert, which fetches and "
                          "converts it, is not installed. With the Python package (pip "
                          "install .) this makes it: `bonsai-convert " +
                          name + "`; or copy a model file to " + model.u8string());
    if (status != 0 || !fs::is_regular_file(model, error))
        throw Failure(kExitModel,
                      name + ": `bonsai-convert " + name + "` did not make the model, see above");
    return model.u8string();
}

} // namespace bonsai::cli
