// SPDX-License-Identifier: Apache-2.0
// Whether a text is JSON (RFC 8259); a stranger to the code that writes it.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstring>
#include <string_view>

namespace fuzz {

class JsonCheck {
  public:
    explicit JsonCheck(std::string_view text) : text_(text) {}
    bool whole() { return value(0) && (space(), at_ == text_.size()); }

  private:
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool take(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }
    void space() {
        while (peek() != '\0' && std::strchr(" \t\r\n", peek()))
            ++at_;
    }
    bool digits() {
        const size_t first = at_;
        while (std::isdigit(static_cast<unsigned char>(peek())))
            ++at_;
        return at_ > first;
    }
    bool number() {
        take("-");
        if (!take("0") && !digits()) return false;
        if (take(".") && !digits()) return false;
        if (take("e") || take("E")) {
            if (!take("+")) take("-");
            return digits();
        }
        return true;
    }
    bool string() {
        if (!take("\"")) return false;
        while (!take("\"")) {
            if (static_cast<unsigned char>(peek()) < 32) return false;
            if (take("\\u")) {
                for (int i = 0; i < 4; ++i, ++at_)
                    if (!std::isxdigit(static_cast<unsigned char>(peek()))) return false;
            } else if (take("\\")) {
                if (peek() == '\0' || !std::strchr("\"\\/bfnrt", peek())) return false;
                ++at_;
            } else {
                ++at_;
            }
        }
        return true;
    }
    // [a, b] or {"k": a, "l": b}, behind the opening bracket.
    bool members(const char* close, bool named, int depth) {
        space();
        if (take(close)) return true;
        do {
            space();
            if (named && !(string() && (space(), take(":")))) return false;
            if (!value(depth + 1)) return false;
            space();
        } while (take(","));
        return take(close);
    }
    bool value(int depth) {
        if (depth > 8) return false;
        space();
        if (take("{")) return members("}", true, depth);
        if (take("[")) return members("]", false, depth);
        if (peek() == '"') return string();
        return take("true") || take("false") || take("null") || number();
    }

    std::string_view text_;
    size_t at_ = 0;
};

inline bool is_json(std::string_view text) {
    return JsonCheck(text).whole();
}

} // namespace fuzz
