// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"

#include <cstdarg>
#include <cstdio>
#include <new>
#include <stdexcept>

#include "core/utf8.h"

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
    // Messages quote files and arguments, and end on terminals.
    Status status(code, legible(format_list(text, args)));
    va_end(args);
    return status;
}

// Nothing may be thrown in a handler: the text without `what` is short enough to need no memory.
static Status unexpected(const char* what) noexcept {
    try {
        return Status(ErrorCode::kInternal, std::string("unexpected: ") + what);
    } catch (...) {
        return Status(ErrorCode::kInternal, "unexpected");
    }
}

Status caught() noexcept {
    try {
        throw;
    } catch (const std::bad_alloc&) {
        return Status(ErrorCode::kMemory, "out of memory");
    } catch (const std::length_error&) { // a container asked for more than there can be
        return Status(ErrorCode::kMemory, "out of memory");
    } catch (const std::exception& error) {
        return unexpected(error.what());
    } catch (...) {
        return unexpected("an exception");
    }
}

} // namespace bonsai
