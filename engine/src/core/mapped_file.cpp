// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <cstring>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>

#include "core/path.h"
#else
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
    const bool sized = GetFileSizeEx(handle, &size) && size.QuadPart > 0;
    if (sized) file->mapping_ = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
    CloseHandle(handle);
    if (!sized) return fail(ErrorCode::kFormat, "%s: the file is empty", path.c_str());
    if (file->mapping_)
        file->data_ =
            static_cast<const uint8_t*>(MapViewOfFile(file->mapping_, FILE_MAP_READ, 0, 0, 0));
    if (!file->data_)
        return fail(ErrorCode::kIo, "%s: cannot be mapped (error %lu)", path.c_str(),
                    GetLastError());
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

void evict_pages(const void*, size_t) {}

#else

Status MappedFile::open(const std::string& path, std::unique_ptr<MappedFile>* out) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(ErrorCode::kIo, "%s: cannot be opened: %s", path.c_str(), std::strerror(errno));
    struct stat info;
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        ::close(fd);
        return fail(ErrorCode::kIo, "%s: not a regular file; a model is one GGUF file",
                    path.c_str());
    }
    if (info.st_size == 0) {
        ::close(fd);
        return fail(ErrorCode::kFormat, "%s: the file is empty", path.c_str());
    }
    void* data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
    const int map_error = errno;
    ::close(fd);
    if (data == MAP_FAILED)
        return fail(ErrorCode::kMemory, "%s: cannot be mapped: %s", path.c_str(),
                    std::strerror(map_error));
    std::unique_ptr<MappedFile> file(new MappedFile);
    file->path_ = path;
    file->data_ = static_cast<const uint8_t*>(data);
    file->size_ = static_cast<uint64_t>(info.st_size);
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
    if (data_) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
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
