// SPDX-License-Identifier: Apache-2.0
#include "output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#else
#include <unistd.h>
#endif

#include "failure.h"
#include "signals.h"
#include "text.h"

namespace bonsai::cli {
namespace {

namespace fs = std::filesystem;

bool stdout_is_terminal() {
#if defined(_WIN32)
    return _isatty(_fileno(stdout)) != 0;
#else
    return isatty(STDOUT_FILENO) != 0;
#endif
}

void check_access(const fs::path& path, const fs::path& asked) {
#if defined(_WIN32)
    constexpr int kMayWrite = 2;
    const bool writable = _waccess(asked.c_str(), kMayWrite) == 0;
#else
    const bool writable = access(asked.c_str(), W_OK) == 0;
#endif
    if (!writable)
        throw Failure(kExitFailure, "cannot write " + path.u8string() + ": " +
                                        std::strerror(errno) +
                                        "; choose an existing folder that you may write to");
}

// A pipe or a device: it stays what it is, and writing to it may wait for who reads.
bool is_special(const fs::path& path) {
    std::error_code error;
    return fs::is_other(fs::status(path, error));
}

// What is there already, and the folder, where a file is written under a temporary name first.
void check_writable(const fs::path& path) {
    std::error_code error;
    const bool exists = fs::exists(path, error);
    if (exists) check_access(path, path);
    if (exists && (fs::is_directory(path, error) || is_special(path))) return;
    const fs::path file = exists ? fs::canonical(path, error) : path;
    check_access(path, file.has_parent_path() ? file.parent_path() : fs::path("."));
}

// Creates the file if nothing has that name; false when something has.
bool create_new(const fs::path& path) {
#if defined(_WIN32)
    // The system library knows no "x" of fopen.
    const int file =
        _wopen(path.c_str(), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, _S_IREAD | _S_IWRITE);
    if (file >= 0) return _close(file) == 0;
#else
    FILE* file = std::fopen(path.c_str(), "wbx");
    if (file != nullptr) return std::fclose(file) == 0;
#endif
    if (errno == EEXIST) return false;
    throw Failure(kExitFailure, "cannot write " + path.u8string() + ": " + std::strerror(errno));
}

void write_to_stdout(const bonsai_image& image) {
    uint8_t* raw = nullptr;
    size_t size = 0;
    check(bonsai_image_encode_png(&image, &raw, &size), kExitFailure);
    const std::unique_ptr<uint8_t, void (*)(void*)> bytes(raw, bonsai_free);
#if defined(_WIN32)
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (std::fwrite(bytes.get(), 1, size, stdout) != size || std::fflush(stdout) != 0)
        throw Failure(kExitFailure,
                      std::string("cannot write to standard output: ") + std::strerror(errno));
}

void refuse_other_format(const fs::path& path) {
    std::string extension = path.extension().u8string();
    for (char& c : extension)
        c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    for (const char* other :
         {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".gguf"})
        if (extension == other)
            throw Failure(kExitUsage, "--output " + path.u8string() +
                                          ": only PNG is written; name it " +
                                          fs::path(path).replace_extension(".png").u8string());
}

} // namespace

Output::Output(const std::optional<std::string>& path, int32_t images, bool json) {
    std::error_code error;
    const fs::path given = fs::u8path(path.value_or("."));
    path_ = given.u8string();
    if (path_ == "-") {
        if (images > 1)
            throw Failure(kExitUsage, "--output - takes one picture, found --images " +
                                          std::to_string(images) + "; give a folder");
        if (json)
            throw Failure(kExitUsage, "--output - and --json both write to standard output; "
                                      "give a file");
        if (stdout_is_terminal())
            throw Failure(kExitUsage, "--output - would write a PNG to the terminal; send it on: "
                                      "bonsai-cli ... -o - > picture.png");
        return;
    }
    if (path_.empty())
        throw Failure(kExitUsage, "--output is empty: expected a PNG file, a folder or -");
    if (fs::is_directory(given, error)) {
        folder_ = path_;
        check_writable(given);
        return;
    }
    refuse_other_format(given);
    check_writable(given);
    waits_ = is_special(given);
    numbered_ = images > 1 && !waits_;
}

std::string Output::save(const bonsai_image& image, const std::string& prompt) const {
    if (path_ == "-") { // a second signal may end this: whoever should read may have stopped
        write_to_stdout(image);
        return path_;
    }
    if (waits_) { // likewise
        check(bonsai_image_save_png(&image, path_.c_str()), kExitFailure);
        return path_;
    }
    const CriticalSection writing;
    if (!folder_.empty()) return save_new(image, prompt);
    fs::path path = fs::u8path(path_);
    if (numbered_)
        path.replace_filename(path.stem().u8string() + "-" + std::to_string(image.seed) +
                              path.extension().u8string());
    check(bonsai_image_save_png(&image, path.u8string().c_str()), kExitFailure);
    return path.u8string();
}

// "a-red-apple-42.png", or "a-red-apple-42-2.png" when that exists. Creating the empty file first
// makes the name ours even when another process looks for one at the same time.
std::string Output::save_new(const bonsai_image& image, const std::string& prompt) const {
    const std::string stem = slug(prompt) + "-" + std::to_string(image.seed);
    for (int i = 1;; ++i) {
        const std::string name = stem + (i == 1 ? "" : "-" + std::to_string(i)) + ".png";
        const fs::path path =
            (folder_ == "." ? fs::path() : fs::u8path(folder_)) / fs::u8path(name);
        if (!create_new(path)) continue;
        const bonsai_status status = bonsai_image_save_png(&image, path.u8string().c_str());
        if (status != BONSAI_OK) {
            const std::string message = bonsai_last_error();
            std::error_code error;
            fs::remove(path, error);
            throw Failure(kExitFailure, message);
        }
        return path.u8string();
    }
}

} // namespace bonsai::cli
