// SPDX-License-Identifier: Apache-2.0
#include "core/file_output.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(_WIN32)
#include <filesystem>
#include <fstream>
#include <process.h>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace bonsai {
namespace {

// What to do about an error of the system, for the end of a message.
const char* advice(int error) {
    switch (error) {
    case ENOSPC:
        return "; free some space or write to another disk";
    case EACCES:
    case EPERM:
    case EROFS:
        return "; choose a folder that you may write to";
    case ENOENT:
    case ENOTDIR:
        return "; create the folder first";
    case ENAMETOOLONG:
        return "; choose a shorter name";
    default:
        return "";
    }
}

Status write_error(const std::string& path, int error) {
    return fail(error == ENOMEM ? ErrorCode::kMemory : ErrorCode::kIo, "cannot write %s: %s%s",
                path.c_str(), std::strerror(error), advice(error));
}

// A name in the folder of path that no other thread or process uses. Short, so that any allowed
// name of path works.
std::string temporary_name(const std::string& path) {
    static std::atomic<unsigned> counter{0};
#if defined(_WIN32)
    const size_t slash = path.find_last_of("/\\");
    const int process = _getpid();
#else
    const size_t slash = path.find_last_of('/');
    const int process = static_cast<int>(getpid());
#endif
    const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
    return folder + format(".bonsai-%d-%u.tmp", process, counter.fetch_add(1));
}

#if !defined(_WIN32)

// Writes everything and closes fd; 0 or the errno of what went wrong.
int write_and_close(int fd, const void* data, size_t size, bool sync) {
    const char* at = static_cast<const char*>(data);
    int error = 0;
    while (size > 0 && error == 0) {
        const ssize_t written = ::write(fd, at, size);
        if (written > 0) {
            at += written;
            size -= static_cast<size_t>(written);
        } else if (written == 0 || errno != EINTR) {
            error = written == 0 ? EIO : errno;
        }
    }
    // Some file systems know no fsync; a full disk may show only here.
    if (error == 0 && sync && fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) error = errno;
    if (::close(fd) != 0 && error == 0 && errno != EINTR) error = errno;
    return error;
}

#endif

} // namespace

#if defined(_WIN32)

Status write_file(const std::string& path, const void* data, size_t size) {
    namespace fs = std::filesystem;
    const fs::path target = fs::u8path(path), temporary = fs::u8path(temporary_name(path));
    std::error_code error;
    bool written = false;
    int write_errno = 0; // before the file goes and sets its own
    {
        errno = 0;
        std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
        file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
        if (file.good()) file.close();
        written = file.good();
        write_errno = errno != 0 ? errno : EIO;
    }
    if (written) {
        fs::rename(temporary, target, error);
        if (!error) return Status();
    }
    const int code = written ? error.default_error_condition().value() : write_errno;
    fs::remove(temporary, error);
    return write_error(path, code);
}

#else

Status write_file(const std::string& path, const void* data, size_t size) {
    std::string target = path;
    struct stat info;
    const bool exists = ::stat(path.c_str(), &info) == 0;
    if (exists && S_ISDIR(info.st_mode))
        return fail(ErrorCode::kIo, "cannot write %s: it is a folder; give a file name",
                    path.c_str());
    if (exists && ::access(path.c_str(), W_OK) != 0) return write_error(path, errno);
    if (exists && !S_ISREG(info.st_mode)) {
        const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
        const int error = fd < 0 ? errno : write_and_close(fd, data, size, false);
        return error == 0 ? Status() : write_error(path, error);
    }
    if (exists) {
        const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr),
                                                          std::free);
        if (real == nullptr) return write_error(path, errno);
        target = real.get();
    }

    // A process of the same number that was killed may have left its temporary file (in containers
    // numbers repeat).
    std::string temporary;
    int fd = -1;
    for (int attempt = 0; fd < 0 && attempt < 100; ++attempt) {
        temporary = temporary_name(target);
        fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0) return write_error(path, errno);
    if (exists)
        (void)!::fchmod(fd, info.st_mode & 07777); // keeps the mode where the owner allows it
    int error = write_and_close(fd, data, size, true);
    if (error == 0 && std::rename(temporary.c_str(), target.c_str()) != 0) error = errno;
    if (error == 0) return Status();
    ::unlink(temporary.c_str());
    return write_error(path, error);
}

#endif

} // namespace bonsai
