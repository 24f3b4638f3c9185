// SPDX-License-Identifier: Apache-2.0
#include "core/describe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "core/identify.h"
#include "core/sha256.h"
#include "core/utf8.h"

namespace bonsai {

std::string quoted(std::string_view text, size_t limit) {
    std::string out = "\"";
    size_t i = 0;
    while (i < text.size() && i < limit) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const size_t length = utf8_length(text, i);
        if (length == 0) {
            out += "\xef\xbf\xbd";
            ++i;
        } else if (byte == '"' || byte == '\\') {
            out += '\\';
            out += text[i++];
        } else if (byte < 32 || byte == 127) {
            out += format("\\u%04x", static_cast<unsigned>(byte));
            ++i;
        } else {
            out.append(text.substr(i, length));
            i += length;
        }
    }
    return out + (i < text.size() ? "...\"" : "\"");
}

std::string number_text(double value, int digits) {
    return std::isfinite(value) ? format("%.*g", digits, value) : "null";
}

namespace {

constexpr uint64_t kShownElements = 8;   // of an array, as text
constexpr uint64_t kListedElements = 64; // in JSON
constexpr size_t kListedBytes = 1 << 20; // of one string, in JSON

std::string type_name(uint32_t id) {
    const char* name = nullptr;
    uint32_t block, bytes;
    return gguf_tensor_type(id, &name, &block, &bytes) ? name : "type " + std::to_string(id);
}

template <typename T> T load(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// One element; *at moves behind it.
std::string element_text(GgufType type, const uint8_t** at, size_t limit) {
    const uint8_t* p = *at;
    switch (type) {
    case GgufType::kU8:
        *at += 1;
        return std::to_string(*p);
    case GgufType::kI8:
        *at += 1;
        return std::to_string(load<int8_t>(p));
    case GgufType::kBool:
        *at += 1;
        return *p ? "true" : "false";
    case GgufType::kU16:
        *at += 2;
        return std::to_string(load<uint16_t>(p));
    case GgufType::kI16:
        *at += 2;
        return std::to_string(load<int16_t>(p));
    case GgufType::kU32:
        *at += 4;
        return std::to_string(load<uint32_t>(p));
    case GgufType::kI32:
        *at += 4;
        return std::to_string(load<int32_t>(p));
    case GgufType::kU64:
        *at += 8;
        return std::to_string(load<uint64_t>(p));
    case GgufType::kI64:
        *at += 8;
        return std::to_string(load<int64_t>(p));
    case GgufType::kF32:
        *at += 4;
        return number_text(static_cast<double>(load<float>(p)), 9);
    case GgufType::kF64:
        *at += 8;
        return number_text(load<double>(p), 17);
    case GgufType::kString: {
        const auto length = static_cast<size_t>(load<uint64_t>(p));
        *at += 8 + length;
        return quoted(std::string_view(reinterpret_cast<const char*>(p + 8), length), limit);
    }
    default:
        return "null";
    }
}

std::string value_text(const GgufValue& value, size_t string_limit, uint64_t element_limit) {
    const uint8_t* at = value.data;
    if (!value.is_array) return element_text(value.type, &at, string_limit);
    std::string out = "[";
    const uint64_t shown = std::min(value.count, element_limit);
    for (uint64_t i = 0; i < shown; ++i)
        out += (i ? ", " : "") + element_text(value.type, &at, string_limit);
    if (shown < value.count)
        return out + format(", ...] (%llu %s)", static_cast<unsigned long long>(value.count),
                            gguf_type_name(value.type));
    return out + "]";
}

struct Share {
    uint64_t tensors = 0, elements = 0, bytes = 0;
};

// Tensors by part (what stands before the first dot) and type.
std::map<std::pair<std::string, std::string>, Share> shares_of(const GgufFile& file) {
    std::map<std::pair<std::string, std::string>, Share> shares;
    for (const GgufTensor& t : file.tensors()) {
        Share& share =
            shares[{std::string(t.name.substr(0, t.name.find('.'))), type_name(t.type_id)}];
        share.tensors += 1;
        share.elements += t.elements();
        share.bytes += t.bytes;
    }
    return shares;
}

std::string shape_of(const GgufTensor& t, const char* separator) {
    std::string out;
    for (int d = t.dims - 1; d >= 0; --d)
        out += std::to_string(t.ne[d]) + (d ? separator : "");
    return out;
}

} // namespace

static std::string identity_text(const Identity& id) {
    std::string out = "  " + id.what + (id.runnable ? ": ready to draw\n" : "\n");
    if (!id.missing.empty()) {
        out += "  to draw with it, add:";
        for (const std::string& part : id.missing)
            out += (part == id.missing.front() ? " " : ", ") + part;
        out += "\n";
    }
    for (const std::string& note : id.notes)
        out += "  note: " + note + "\n";
    if (!id.command.empty()) return out + "  this makes a model to draw with: " + id.command + "\n";
    return id.runnable ? out : out + "  nothing makes it one that this engine draws with\n";
}

static std::string identity_json(const Identity& id) {
    const auto list = [](const std::vector<std::string>& texts) {
        std::string out = "[";
        for (const std::string& text : texts)
            out += (out.size() > 1 ? ", " : "") + quoted(text);
        return out + "]";
    };
    return "\"is\": " + quoted(id.what) + ", \"runnable\": " + (id.runnable ? "true" : "false") +
           ", \"missing\": " + list(id.missing) + ", \"notes\": " + list(id.notes) +
           ", \"command\": " + (id.command.empty() ? "null" : quoted(id.command));
}

std::string describe_text(const GgufFile& file) {
    std::string out =
        format("%s\n  GGUF version 3, %.1f MB, %zu tensors, %zu keys\n",
               legible(file.file().path()).c_str(), static_cast<double>(file.file().size()) / 1e6,
               file.tensors().size(), file.keys().size());
    out += identity_text(identify(file));
    out += "\nparts\n";
    for (const auto& [key, share] : shares_of(file))
        out += format(
            "  %-8s %-8s %5llu tensors %14llu weights %9.1f MB  %.3f bits a weight\n",
            key.first.c_str(), key.second.c_str(), static_cast<unsigned long long>(share.tensors),
            static_cast<unsigned long long>(share.elements), static_cast<double>(share.bytes) / 1e6,
            8.0 * static_cast<double>(share.bytes) / static_cast<double>(share.elements));
    out += "\nkeys\n";
    for (const auto& [key, value] : file.keys())
        out += format("  %.*s = %s\n", static_cast<int>(key.size()), key.data(),
                      value_text(value, 72, kShownElements).c_str());
    return out;
}

std::string describe_json(const GgufFile& file) {
    std::string out = "{\"path\": " + quoted(file.file().path(), SIZE_MAX);
    out += format(", \"bytes\": %llu, ", static_cast<unsigned long long>(file.file().size()));
    out += identity_json(identify(file)) + ", \"keys\": {";
    const char* comma = "";
    for (const auto& [key, value] : file.keys()) {
        // Long arrays (a vocabulary) are given by their length.
        const std::string text =
            value.is_array && value.count > kListedElements
                ? format("{\"length\": %llu}", static_cast<unsigned long long>(value.count))
                : value_text(value, kListedBytes, kListedElements);
        out += comma + quoted(key, SIZE_MAX) + ": " + text;
        comma = ", ";
    }
    out += "}, \"tensors\": [";
    comma = "";
    for (const GgufTensor& t : file.tensors()) {
        out += comma + format("{\"name\": %s, \"type\": \"%s\", \"shape\": [%s], \"bytes\": %llu}",
                              quoted(t.name, SIZE_MAX).c_str(), type_name(t.type_id).c_str(),
                              shape_of(t, ", ").c_str(), static_cast<unsigned long long>(t.bytes));
        comma = ", ";
    }
    return out + "]}";
}

Status verify_hashes(const GgufFile& file,
                     const std::function<Status(double, std::string_view)>& progress) {
    std::vector<std::string_view> hashes;
    const Identity id = identify(file);
    if (!id.is_bonsai && !file.has("bonsai.tensor_sha256"))
        return fail(ErrorCode::kUnsupported,
                    "%s: %s; it holds no hashes, so its weights cannot be verified. Its header and "
                    "the extent of its tensors are sound; `bonsai-cli info` tells what it lacks",
                    file.file().path().c_str(), id.what.c_str());
    BONSAI_TRY(file.get("bonsai.tensor_sha256", &hashes));
    if (hashes.size() != file.tensors().size())
        return fail(ErrorCode::kFormat, "%s: %zu hashes for %zu tensors",
                    file.file().path().c_str(), hashes.size(), file.tensors().size());
    uint64_t total = 0, done = 0;
    for (const GgufTensor& t : file.tensors())
        total += t.bytes;
    for (size_t i = 0; i < hashes.size(); ++i) {
        const GgufTensor& t = file.tensors()[i];
        Sha256 sha;
        for (uint64_t at = 0; at < t.bytes;
             at += 1 << 22) { // pieces of 4 MB between progress reports
            const uint64_t piece = std::min<uint64_t>(1 << 22, t.bytes - at);
            sha.update(file.data(t) + at, static_cast<size_t>(piece));
            done += piece;
            BONSAI_TRY(progress(static_cast<double>(done) /
                                    static_cast<double>(std::max<uint64_t>(total, 1)),
                                t.name));
        }
        evict_pages(file.data(t), static_cast<size_t>(t.bytes));
        BONSAI_TRY(file.file().check()); // the hash is not to blame then
        const std::string found = sha.hex();
        if (found != hashes[i])
            return fail(ErrorCode::kFormat,
                        "%s: tensor %.*s is damaged: its SHA-256 is %s, the file was made with "
                        "%s; download or convert it again",
                        file.file().path().c_str(), static_cast<int>(t.name.size()), t.name.data(),
                        found.c_str(), printable(hashes[i]).c_str());
    }
    return Status();
}

} // namespace bonsai
