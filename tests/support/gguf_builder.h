// SPDX-License-Identifier: Apache-2.0
// The engine's maker of small GGUF files, and temporary files to keep them in.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "core/gguf_builder.h"

#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace test {

using bonsai::GgufBuilder;

class TempFile {
  public:
    explicit TempFile(const std::string& bytes) {
        static std::atomic<int> count{0};
        const char* folder = std::getenv("TMPDIR");
        path_ = std::string(folder ? folder : "/tmp") + "/bonsai-test-" + std::to_string(getpid()) +
                "-" + std::to_string(count++);
        if (std::FILE* file = std::fopen(path_.c_str(), "wb")) {
            std::fwrite(bytes.data(), 1, bytes.size(), file);
            std::fclose(file);
        }
    }
    ~TempFile() { std::remove(path_.c_str()); }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

} // namespace test
