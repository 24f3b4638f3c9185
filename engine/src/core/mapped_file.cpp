// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <cstring>

#ifdef _WIN32
#include <windows.h>

#include "core/path.h"
#else
#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace bonsai {

#ifdef _WIN32

Status MappedFile::open(const std::string& path, std::unique_ptr<MappedFile>* out) {
    std::unique_ptr<MappedFile> file(new MappedFile);
    file->path_ = path;
    const HANDLE handle = CreateFileW(to_wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr,
                                      OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (handle == INVALID_HANDLE_VALUE)
        return fail(ErrorCode::kIo, "%s: cannot be opened (error %lu)", path.c_str(),
                    GetLastError());
    LARGE_INTEGER size;
    const bool sized = GetFileSizeEx(handle, &size) != 0;
    DWORD error = sized ? 0 : GetLastError();
    const bool empty = sized && size.QuadPart == 0;
    if (sized && !empty) {
        file->mapping_ = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
        if (!file->mapping_) error = GetLastError(); // before CloseHandle sets its own
    }
    CloseHandle(handle);
    if (empty) return fail(ErrorCode::kFormat, "%s: the file is empty", path.c_str());
    if (file->mapping_) {
        file->data_ =
            static_cast<const uint8_t*>(MapViewOfFile(file->mapping_, FILE_MAP_READ, 0, 0, 0));
        if (!file->data_) error = GetLastError();
    }
    if (!file->data_)
        return fail(ErrorCode::kIo, "%s: cannot be mapped (error %lu)", path.c_str(), error);
    file->size_ = static_cast<uint64_t>(size.QuadPart);
    *out = std::move(file);
    return Status();
}

Status MappedFile::from_memory(const std::string& name, const void* bytes, size_t size,
                               std::unique_ptr<MappedFile>* out) {
    std::unique_ptr<MappedFile> file(new MappedFile);
    file->path_ = name;
    file->mapping_ =
        CreateFileMappingW(INVALID_HANDLE_VALUE, nullptr, PAGE_READWRITE,
                           static_cast<DWORD>(size >> 32), static_cast<DWORD>(size), nullptr);
    void* data =
        file->mapping_ ? MapViewOfFile(file->mapping_, FILE_MAP_WRITE, 0, 0, size) : nullptr;
    if (!data)
        return fail(ErrorCode::kMemory, "%s: no memory for %zu bytes (error %lu)", name.c_str(),
                    size, GetLastError());
    std::memcpy(data, bytes, size);
    file->data_ = static_cast<const uint8_t*>(data);
    file->size_ = size;
    *out = std::move(file);
    return Status();
}

MappedFile::~MappedFile() {
    if (data_) UnmapViewOfFile(data_);
    if (mapping_) CloseHandle(mapping_);
}

// Windows lets nobody write to a file while it is mapped from a handle that shares reading only.
Status MappedFile::read(uint64_t offset, size_t length, void* out) const {
    std::memcpy(out, data_ + offset, length);
    return Status();
}

Status MappedFile::check() const {
    return Status();
}

void evict_pages(const void*, size_t) {}

#else

namespace {

void modified_at(const struct stat& info, int64_t out[2]) {
#ifdef __APPLE__
    out[0] = info.st_mtimespec.tv_sec, out[1] = info.st_mtimespec.tv_nsec;
#else
    out[0] = info.st_mtim.tv_sec, out[1] = info.st_mtim.tv_nsec;
#endif
}

} // namespace

Status MappedFile::open(const std::string& path, std::unique_ptr<MappedFile>* out) {
    std::unique_ptr<MappedFile> file(new MappedFile);
    file->path_ = path;
    // Opening a pipe would wait for its writer.
    file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd_ < 0)
        return fail(ErrorCode::kIo, "%s: cannot be opened: %s", path.c_str(), std::strerror(errno));
    struct stat info;
    if (::fstat(file->fd_, &info) != 0 || !S_ISREG(info.st_mode))
        return fail(ErrorCode::kIo, "%s: not a regular file; a model is one GGUF file",
                    path.c_str());
    if (info.st_size == 0) return fail(ErrorCode::kFormat, "%s: the file is empty", path.c_str());
    void* data =
        ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, file->fd_, 0);
    if (data == MAP_FAILED)
        return fail(ErrorCode::kMemory, "%s: cannot be mapped: %s", path.c_str(),
                    std::strerror(errno));
    file->data_ = static_cast<const uint8_t*>(data);
    file->size_ = static_cast<uint64_t>(info.st_size);
    modified_at(info, file->modified_);
    BONSAI_TRY(file->guard_.protect(file->data_, static_cast<size_t>(info.st_size)));
    *out = std::move(file);
    return Status();
}

// Shared memory: pages that evict_pages() gives back keep what they hold.
Status MappedFile::from_memory(const std::string& name, const void* bytes, size_t size,
                               std::unique_ptr<MappedFile>* out) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return fail(ErrorCode::kMemory, "%s: no memory for %zu bytes: %s", name.c_str(), size,
                    std::strerror(errno));
    std::memcpy(data, bytes, size);
    std::unique_ptr<MappedFile> file(new MappedFile);
    file->path_ = name;
    file->data_ = static_cast<const uint8_t*>(data);
    file->size_ = size;
    *out = std::move(file);
    return Status();
}

MappedFile::~MappedFile() {
    guard_.release();
    if (data_) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
    if (fd_ >= 0) ::close(fd_);
}

Status MappedFile::read(uint64_t offset, size_t length, void* out) const {
    if (fd_ < 0) { // from_memory
        std::memcpy(out, data_ + offset, length);
        return Status();
    }
    constexpr size_t kPiece = size_t{1} << 30; // some systems refuse more at once
    auto* to = static_cast<uint8_t*>(out);
    while (length > 0) {
        const ssize_t got = ::pread(fd_, to, std::min(length, kPiece), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return fail(ErrorCode::kIo, "%s: cannot be read at byte %llu: %s", path_.c_str(),
                        static_cast<unsigned long long>(offset), std::strerror(errno));
        if (got == 0)
            return fail(ErrorCode::kIo, "%s: became shorter while it was being read",
                        path_.c_str());
        to += got, offset += static_cast<uint64_t>(got), length -= static_cast<size_t>(got);
    }
    return Status();
}

Status MappedFile::check() const {
    if (fd_ < 0) return Status(); // from_memory: nobody else has it
    struct stat info;
    const int error = ::fstat(fd_, &info) == 0 ? 0 : errno;
    const char* const advice = "open it again once it is whole";
    if (error == 0 && static_cast<uint64_t>(info.st_size) != size_)
        return fail(ErrorCode::kIo, "%s: was cut or grew while in use, from %llu to %llu bytes; %s",
                    path_.c_str(), static_cast<unsigned long long>(size_),
                    static_cast<unsigned long long>(info.st_size), advice);
    if (error != 0 || guard_.faulted())
        return fail(ErrorCode::kIo, "%s: could not be read while in use (%s); %s", path_.c_str(),
                    error != 0 ? std::strerror(error) : "its disk failed or went away", advice);
    int64_t modified[2];
    modified_at(info, modified);
    if (modified[0] != modified_[0] || modified[1] != modified_[1])
        return fail(ErrorCode::kIo, "%s: was written to while in use; %s", path_.c_str(), advice);
    return Status();
}

void evict_pages(const void* begin, size_t length) {
    // Only whole pages inside the range: neighbours may still be in use.
    const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + length) / page * page;
    if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

#endif

} // namespace bonsai
