// SPDX-License-Identifier: Apache-2.0
// Paths are UTF-8 everywhere in the engine; Windows wants UTF-16 at its file calls.
#pragma once

#ifdef _WIN32
#include <string>

#include <windows.h>

namespace bonsai {

inline std::wstring to_wide(const std::string& utf8) {
    const int length =
        MultiByteToWideChar(CP_UTF8, 0, utf8.data(), static_cast<int>(utf8.size()), nullptr, 0);
    std::wstring wide(static_cast<size_t>(length > 0 ? length : 0), L'\0');
    if (length > 0)
        MultiByteToWideChar(CP_UTF8, 0, utf8.data(), static_cast<int>(utf8.size()), &wide[0],
                            length);
    return wide;
}

} // namespace bonsai
#endif
