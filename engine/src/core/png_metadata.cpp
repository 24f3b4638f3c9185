// SPDX-License-Identifier: Apache-2.0
// The metadata of a picture: its lines, and how they are found again in the text chunks of a PNG.
// See the PNG specification, third edition, section 11.3.3.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "core/planted.h"
#include "core/png.h"
#include "core/png_format.h"
#include "core/utf8.h"

#ifdef BONSAI_HAVE_ZLIB
#include <zlib.h>
#endif

namespace bonsai {
namespace {

#ifdef BONSAI_HAVE_ZLIB

// The text of a compressed chunk, at most kPngTextLimit bytes.
Status inflate_text(const uint8_t* data, size_t size, std::string* text) {
    text->resize(kPngTextLimit);
    uLongf length = kPngTextLimit;
    const int rc =
        uncompress(reinterpret_cast<Bytef*>(&(*text)[0]), &length, data, static_cast<uLong>(size));
    if (rc == Z_MEM_ERROR) return fail(ErrorCode::kMemory, "too large for the memory that is left");
    if (rc != Z_OK) return fail(ErrorCode::kFormat, "damaged or too long (zlib error %d)", rc);
    text->resize(length);
    return Status();
}

#else

Status inflate_text(const uint8_t*, size_t, std::string*) {
    return fail(ErrorCode::kUnsupported, "compressed, and this build has no zlib");
}

#endif

// Latin-1 text of tEXt and zTXt as UTF-8.
std::string from_latin1(const std::string& text) {
    std::string out;
    for (const char c : text) {
        const auto u = static_cast<unsigned char>(c);
        if (u < 0x80) {
            out.push_back(c);
        } else {
            out.push_back(static_cast<char>(0xc0 | u >> 6));
            out.push_back(static_cast<char>(0x80 | (u & 0x3f)));
        }
    }
    return out;
}

// Splits the data of a text chunk behind "keyword NUL". iTXt: flag, method, language NUL,
// translated keyword NUL, text.
Status text_of_chunk(const std::string& type, const uint8_t* data, size_t size, std::string* text) {
    const uint8_t* end = data + size;
    const uint8_t* at = data + sizeof(kPngKeyword);
    bool compressed = type == "zTXt";
    uint8_t method = 0; // the one there is
    if (type == "iTXt") {
        if (end - at < 2) return fail(ErrorCode::kFormat, "cut short");
        if (at[0] > 1)
            return fail(ErrorCode::kFormat, "damaged: its compression flag is %u, expected 0 or 1",
                        static_cast<unsigned>(at[0]));
        compressed = at[0] == 1;
        method = compressed ? at[1] : method;
        at += 2;
        for (int field = 0; field < 2; ++field) {
            const void* nul = std::memchr(at, 0, static_cast<size_t>(end - at));
            if (nul == nullptr) return fail(ErrorCode::kFormat, "cut short");
            at = static_cast<const uint8_t*>(nul) + 1;
        }
    } else if (compressed) {
        if (at == end) return fail(ErrorCode::kFormat, "cut short");
        method = *at++;
    }
    if (method != 0)
        return fail(ErrorCode::kFormat, "damaged: its compression method is %u, expected 0",
                    static_cast<unsigned>(method));
    if (compressed)
        BONSAI_TRY(inflate_text(at, static_cast<size_t>(end - at), text));
    else
        text->assign(at, end);
    if (type != "iTXt") *text = from_latin1(*text);
    if (text->find('\0') != std::string::npos)
        return fail(ErrorCode::kFormat, "damaged: it contains a zero byte");
    const size_t invalid = find_invalid_utf8(*text);
    if (invalid != std::string_view::npos)
        return fail(ErrorCode::kFormat, "damaged: it is not UTF-8 at byte %zu", invalid);
    return Status();
}

// Reads chunks of one file in order.
class ChunkReader {
  public:
    explicit ChunkReader(const std::string& path) : path_(path), file_(open_for_reading(path)) {}
    ~ChunkReader() {
        if (file_ != nullptr) std::fclose(file_);
    }
    ChunkReader(const ChunkReader&) = delete;
    ChunkReader& operator=(const ChunkReader&) = delete;

    Status check_signature() {
        if (file_ == nullptr)
            return fail(errno == ENOMEM ? ErrorCode::kMemory : ErrorCode::kIo, "cannot open %s: %s",
                        path_.c_str(), std::strerror(errno));
        uint8_t signature[8];
        if (!read(signature, sizeof(signature)) ||
            std::memcmp(signature, kPngSignature, sizeof(signature)) != 0)
            return fail(ErrorCode::kFormat, "%s is not a PNG file", path_.c_str());
        return Status();
    }

    // The header of the next chunk.
    Status next(std::string* type, uint32_t* length) {
        uint8_t head[8];
        if (!read(head, sizeof(head)))
            return fail(ErrorCode::kFormat, "%s ends before its last chunk: it is cut off",
                        path_.c_str());
        *length = read_u32(head);
        type->assign(head + 4, head + 8);
        if (*length > INT32_MAX)
            return fail(ErrorCode::kFormat, "%s is damaged: a chunk of %u bytes", path_.c_str(),
                        *length);
        for (const char c : *type) {
            if ((c < 'A' || c > 'Z') && (c < 'a' || c > 'z'))
                return fail(ErrorCode::kFormat, "%s is damaged: a chunk whose type is not letters",
                            path_.c_str());
        }
        if (first_ && (*type != "IHDR" || *length != 13))
            return fail(ErrorCode::kFormat,
                        "%s is damaged: a PNG begins with a chunk IHDR of 13 "
                        "bytes, not with %s of %u",
                        path_.c_str(), type->c_str(), *length);
        first_ = false;
        return Status();
    }

    // Type and data of the chunk behind `next`, its checksum compared.
    Status load(const std::string& type, uint32_t length, std::vector<uint8_t>* data) {
        data->assign(type.begin(), type.end());
        data->resize(4 + static_cast<size_t>(length));
        uint8_t crc[4];
        if (!read(data->data() + 4, length) || !read(crc, sizeof(crc)))
            return fail(ErrorCode::kFormat, "%s ends inside a chunk: it is cut off", path_.c_str());
        if (read_u32(crc) != png_crc32(data->data(), data->size()))
            return fail(ErrorCode::kFormat, "%s is damaged: wrong checksum in chunk %s",
                        path_.c_str(), type.c_str());
        return Status();
    }

    void skip(uint32_t length) {
        // Two steps, as a long may have 32 bits; a jump past the end shows in the next read.
        std::fseek(file_, static_cast<long>(length), SEEK_CUR);
        std::fseek(file_, 4, SEEK_CUR);
    }

  private:
    static FILE* open_for_reading(const std::string& path) {
#if defined(_WIN32)
        return _wfopen(std::filesystem::u8path(path).c_str(), L"rb");
#else
        return std::fopen(path.c_str(), "rb");
#endif
    }
    static uint32_t read_u32(const uint8_t* p) {
        return static_cast<uint32_t>(p[0]) << 24 | static_cast<uint32_t>(p[1]) << 16 |
               static_cast<uint32_t>(p[2]) << 8 | p[3];
    }
    bool read(void* out, size_t size) { return std::fread(out, 1, size, file_) == size; }

    std::string path_;
    FILE* file_;
    bool first_ = true; // no chunk has been read
};

bool is_text_chunk(const std::string& type) {
    return type == "iTXt" || type == "tEXt" || type == "zTXt";
}

} // namespace

std::string metadata_line(const std::string& key, const std::string& value) {
    std::string line = key + ": ";
    for (const char c : value) {
        if (c == '\\')
            line += "\\\\";
        else if (c == '\n')
            line += "\\n";
        else if (c == '\r')
            line += "\\r";
        else
            line.push_back(c);
    }
    line.push_back('\n');
    return line;
}

Status read_png_metadata(const std::string& path, std::string* metadata) {
    metadata->clear();
    std::error_code error;
    // Opening a pipe would wait for its writer, and there is no going forth in it.
    if (std::filesystem::is_other(std::filesystem::status(std::filesystem::u8path(path), error)))
        return fail(ErrorCode::kIo, "%s is not a regular file: save the picture to one first",
                    path.c_str());
    ChunkReader reader(path);
    BONSAI_TRY(reader.check_signature());
    // More chunks than any real picture has; stops a file of millions of empty ones.
    constexpr int kMaxChunks = 1 << 17;
    for (int i = 0; i < kMaxChunks; ++i) {
        std::string type;
        uint32_t length = 0;
        BONSAI_TRY(reader.next(&type, &length));
        if (type == "IEND") break;
        if (!is_text_chunk(type) || length > kPngTextLimit ||
            length + 8 * planted(2) < sizeof(kPngKeyword)) {
            reader.skip(length);
            continue;
        }
        std::vector<uint8_t> data;
        BONSAI_TRY(reader.load(type, length, &data));
        if (std::memcmp(data.data() + 4, kPngKeyword, sizeof(kPngKeyword)) != 0) continue;
        const Status status = text_of_chunk(type, data.data() + 4, length, metadata);
        if (status.ok()) return status;
        metadata->clear();
        return fail(status.code(), "%s: text chunk \"%s\" is %s", path.c_str(), kPngKeyword,
                    status.message().c_str());
    }
    return fail(ErrorCode::kFormat,
                "%s carries no bonsai metadata: it was not drawn by bonsai, or a program that "
                "saved it again dropped the text",
                path.c_str());
}

} // namespace bonsai
