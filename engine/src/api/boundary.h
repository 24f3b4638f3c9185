// SPDX-License-Identifier: Apache-2.0
// What crosses the C interface: errors on their way out, structs and memory of callers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "bonsai.h"
#include "core/status.h"

namespace bonsai::api {

// Copies text into an array, cut where it does not fit but not in the middle of a character.
template <size_t N> void set_text(char (&to)[N], const std::string& from) noexcept {
    size_t length = std::min(from.size(), N - 1);
    while (length > 0 && length < from.size() && (from[length] & 0xc0) == 0x80)
        --length;
    std::memcpy(to, from.data(), length);
    to[length] = 0;
}

// Remembers the message of a failure for bonsai_last_error.
bonsai_status finish(const Status& status) noexcept;

// Runs body, turns exceptions into statuses and remembers the message.
template <typename Body> bonsai_status guarded(const Body& body) {
    Status status;
    try {
        status = body();
    } catch (...) {
        status = caught();
    }
    return finish(status);
}

struct PointerArgument {
    const char* name;
    const void* value;
};
// Names the first that is NULL.
Status require(std::initializer_list<PointerArgument> arguments);

// Structs that callers own may be older and shorter than ours: fill a full one, copy what they have
// room for.
template <typename T> Status hand_over(const T& full, T* out) {
    const uint32_t size = out->struct_size;
    if (size < sizeof(uint32_t))
        return fail(ErrorCode::kArgument, "struct_size is %u; set it to sizeof the struct", size);
    std::memcpy(out, &full, std::min<size_t>(size, sizeof full));
    out->struct_size = size;
    return Status();
}

// The caller's parameters over the defaults of this version.
template <typename T> Status take_over(const T* from, T* full) {
    if (from->struct_size < sizeof(uint32_t) || from->struct_size > 4096)
        return fail(ErrorCode::kArgument,
                    "struct_size is %u; call the struct's _init function first", from->struct_size);
    std::memcpy(full, from, std::min<size_t>(from->struct_size, sizeof *full));
    return Status();
}

// A copy that callers release with bonsai_free.
template <typename T> Status copy_out(const T* data, size_t count, T** out) {
    auto* copy = static_cast<T*>(std::malloc(count * sizeof(T)));
    if (!copy) return Status(ErrorCode::kMemory, "out of memory");
    std::memcpy(copy, data, count * sizeof(T));
    *out = copy;
    return Status();
}

inline Status text_out(const std::string& text, char** out) {
    return copy_out(text.c_str(), text.size() + 1, out);
}

} // namespace bonsai::api
