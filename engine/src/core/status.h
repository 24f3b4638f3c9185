// SPDX-License-Identifier: Apache-2.0
// Status: how every fallible function of the engine reports. The library never prints, aborts or
// exits.
#pragma once

#include <string>
#include <utility>

#include "bonsai.h"

#if defined(__MINGW32__) && !defined(__clang__)
#define BONSAI_PRINTF(fmt_index, first_arg)                                                        \
    __attribute__((format(gnu_printf, fmt_index, first_arg)))
#elif defined(__GNUC__)
#define BONSAI_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
#else
#define BONSAI_PRINTF(fmt_index, first_arg)
#endif

namespace bonsai {

// The values of bonsai_status in bonsai.h, so that api/ forwards them unchanged.
enum class ErrorCode : int {
    kOk = BONSAI_OK,
    kArgument = BONSAI_ERR_ARGUMENT,
    kIo = BONSAI_ERR_IO,
    kFormat = BONSAI_ERR_FORMAT,
    kUnsupported = BONSAI_ERR_UNSUPPORTED,
    kMemory = BONSAI_ERR_MEMORY,
    kCancelled = BONSAI_ERR_CANCELLED,
    kInternal = BONSAI_ERR_INTERNAL,
};

class [[nodiscard]] Status {
  public:
    Status() = default;
    Status(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

    bool ok() const { return code_ == ErrorCode::kOk; }
    ErrorCode code() const { return code_; }
    // What failed, where, what was expected, what was found, what to do. Empty when ok.
    const std::string& message() const { return message_; }

  private:
    ErrorCode code_ = ErrorCode::kOk;
    std::string message_;
};

// A failed Status with a printf-formatted message.
Status fail(ErrorCode code, const char* format, ...) BONSAI_PRINTF(2, 3);

// Inside a catch block: what was caught as a Status, memory that ran out as kMemory. Exceptions end
// where a call of the library, a thread or a device's recording ends: api/, core/thread_pool,
// model/pipeline_denoise.
Status caught() noexcept;

// printf into a std::string.
std::string format(const char* format, ...) BONSAI_PRINTF(1, 2);

} // namespace bonsai

// Returns the Status of `expression` from the enclosing function unless it is ok.
#define BONSAI_TRY(expression)                                                                     \
    do {                                                                                           \
        ::bonsai::Status bonsai_try_status = (expression);                                         \
        if (!bonsai_try_status.ok()) return bonsai_try_status;                                     \
    } while (0)
