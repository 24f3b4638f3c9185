// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace bonsai {

static std::string format_list(const char* text, va_list args) {
    va_list again;
    va_copy(again, args);
    const int length = std::vsnprintf(nullptr, 0, text, args);
    std::string out(length > 0 ? static_cast<size_t>(length) : 0, '\0');
    if (length > 0) std::vsnprintf(&out[0], out.size() + 1, text, again);
    va_end(again);
    return out;
}

std::string format(const char* text, ...) {
    va_list args;
    va_start(args, text);
    std::string out = format_list(text, args);
    va_end(args);
    return out;
}

Status fail(ErrorCode code, const char* text, ...) {
    va_list args;
    va_start(args, text);
    Status status(code, format_list(text, args));
    va_end(args);
    return status;
}

} // namespace bonsai
