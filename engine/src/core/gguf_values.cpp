// SPDX-License-Identifier: Apache-2.0
// The values of keys as the types that callers ask for. That they lie within the header has been
// checked when the file was opened.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/gguf.h"

namespace bonsai {

namespace {

template <typename T> T load(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

bool is_integer(GgufType type) {
    return type != GgufType::kF32 && type != GgufType::kF64 && type != GgufType::kBool &&
           type != GgufType::kString;
}

// False: too large for int64.
template <typename T> bool widen(const uint8_t* at, int64_t* out) {
    *out = static_cast<int64_t>(load<T>(at));
    return std::is_signed_v<T> || *out >= 0;
}

// False: not an integer, or too large for int64.
bool load_integer(GgufType type, const uint8_t* at, int64_t* out) {
    switch (type) {
    case GgufType::kU8:
        return widen<uint8_t>(at, out);
    case GgufType::kI8:
        return widen<int8_t>(at, out);
    case GgufType::kU16:
        return widen<uint16_t>(at, out);
    case GgufType::kI16:
        return widen<int16_t>(at, out);
    case GgufType::kU32:
        return widen<uint32_t>(at, out);
    case GgufType::kI32:
        return widen<int32_t>(at, out);
    case GgufType::kU64:
        return widen<uint64_t>(at, out);
    case GgufType::kI64:
        return widen<int64_t>(at, out);
    default:
        return false;
    }
}

} // namespace

Status GgufFile::find_value(std::string_view key, const GgufValue** out) const {
    const auto it = key_index_.find(key);
    if (it == key_index_.end())
        return fail(ErrorCode::kFormat,
                    "%s: the key %.*s is missing; convert the checkpoint again with this version's "
                    "bonsai-convert",
                    file_->path().c_str(), static_cast<int>(key.size()), key.data());
    *out = &keys_[it->second].second;
    return Status();
}

// An array of at most `most` elements.
Status GgufFile::find_array(std::string_view key, uint64_t most, const GgufValue** out) const {
    BONSAI_TRY(find_value(key, out));
    if (!(*out)->is_array || (*out)->count <= most) return Status();
    return value_error(key, format("has %llu entries, expected at most %llu",
                                   static_cast<unsigned long long>((*out)->count),
                                   static_cast<unsigned long long>(most)));
}

Status GgufFile::value_error(std::string_view key, const std::string& what) const {
    return fail(ErrorCode::kFormat, "%s: key %.*s %s", file_->path().c_str(),
                static_cast<int>(key.size()), key.data(), what.c_str());
}

Status GgufFile::type_error(std::string_view key, const char* expected,
                            const GgufValue& found) const {
    return value_error(key,
                       format("should be %s, but is %s%s", expected,
                              found.is_array ? "an array of " : "", gguf_type_name(found.type)));
}

Status GgufFile::get(std::string_view key, int64_t* out) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_value(key, &value));
    if (value->is_array || !is_integer(value->type)) return type_error(key, "an integer", *value);
    if (!load_integer(value->type, value->data, out)) return value_error(key, "is above 2^63 - 1");
    return Status();
}

Status GgufFile::get(std::string_view key, double* out) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_value(key, &value));
    if (value->is_array || (value->type != GgufType::kF32 && value->type != GgufType::kF64))
        return type_error(key, "a float", *value);
    *out = value->type == GgufType::kF32 ? load<float>(value->data) : load<double>(value->data);
    if (!std::isfinite(*out)) return value_error(key, "is not a finite number");
    return Status();
}

Status GgufFile::get(std::string_view key, bool* out) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_value(key, &value));
    if (value->is_array || value->type != GgufType::kBool) return type_error(key, "a bool", *value);
    *out = *value->data != 0;
    return Status();
}

Status GgufFile::get(std::string_view key, std::string_view* out) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_value(key, &value));
    if (value->is_array || value->type != GgufType::kString)
        return type_error(key, "a string", *value);
    *out = std::string_view(reinterpret_cast<const char*>(value->data + 8),
                            static_cast<size_t>(load<uint64_t>(value->data)));
    return Status();
}

Status GgufFile::get(std::string_view key, std::vector<int64_t>* out, uint64_t most) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_array(key, most, &value));
    const uint64_t bytes = gguf_value_bytes(static_cast<uint32_t>(value->type));
    if (!value->is_array || !is_integer(value->type))
        return type_error(key, "an array of integers", *value);
    out->resize(static_cast<size_t>(value->count));
    for (uint64_t i = 0; i < value->count; ++i) {
        if (!load_integer(value->type, value->data + i * bytes, &(*out)[static_cast<size_t>(i)]))
            return value_error(key, "holds a number above 2^63 - 1");
    }
    return Status();
}

Status GgufFile::get(std::string_view key, std::vector<std::string_view>* out,
                     uint64_t most) const {
    const GgufValue* value = nullptr;
    BONSAI_TRY(find_array(key, most, &value));
    if (!value->is_array || value->type != GgufType::kString)
        return type_error(key, "an array of strings", *value);
    out->clear();
    out->reserve(static_cast<size_t>(value->count));
    const uint8_t* at = value->data;
    for (uint64_t i = 0; i < value->count; ++i) { // lengths within the header: parsed before
        const auto length = static_cast<size_t>(load<uint64_t>(at));
        out->emplace_back(reinterpret_cast<const char*>(at + 8), length);
        at += 8 + length;
    }
    return Status();
}

} // namespace bonsai
