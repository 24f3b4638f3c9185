// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets demand beyond "no sanitizer report".
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "bonsai.h"
#include "model/unicode.h"

namespace fuzz {

// Ends the program, as a crash that the fuzzer keeps, unless the condition holds.
inline void require(bool condition, const char* what, const std::string& detail) {
    if (condition) return;
    std::fprintf(stderr, "broken promise: %s\n%s\n", what, detail.c_str());
    std::abort();
}

// Text that goes to terminals and programs: valid UTF-8 and, apart from newlines where they are
// allowed, no control characters.
inline void require_clean(const std::string& text, bool lines) {
    require(bonsai::find_invalid_utf8(text) == std::string::npos, "text is UTF-8", text);
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        require((byte >= 32 && byte != 127) || (lines && c == '\n'), "no control characters", text);
    }
}

// Every failure of the library is explained, and none is blamed on the library itself.
inline void require_reason(bonsai_status status) {
    if (status == BONSAI_OK) return;
    const std::string reason = bonsai_last_error();
    require(status != BONSAI_ERR_INTERNAL, "hostile input is no internal error", reason);
    require(!reason.empty(), "a failure has a reason", bonsai_status_text(status));
    require_clean(reason, false);
}

} // namespace fuzz
