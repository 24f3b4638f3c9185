// SPDX-License-Identifier: Apache-2.0
// Format: signature, then chunks of [length u32 BE][type][data][CRC-32 of type and data]; picture
// rows are filtered, then zlib (RFC 1950), spread over IDAT chunks. See the PNG specification,
// third edition, sections 5, 9 and 11.
#include "core/png.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(_WIN32)
#include <filesystem>
#endif

#include "core/planted.h"
#include "core/utf8.h"

#ifdef BONSAI_HAVE_ZLIB
#include <zlib.h>
#endif

namespace bonsai {
namespace {

constexpr uint8_t kSignature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr int kChannels = 3;
// Keeps the stored form of the largest picture below the 2^31 - 1 bytes a chunk may have.
constexpr uint64_t kMaxRawBytes = 0x7f000000;
// What read_png_metadata takes, less room for the keyword.
constexpr uint32_t kMaxMetadata = kPngTextLimit - 1024;

void append_u32(std::vector<uint8_t>* out, uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8)
        out->push_back(static_cast<uint8_t>(value >> shift));
}

const std::array<uint32_t, 256>& crc_table() {
    static const std::array<uint32_t, 256> table = [] {
        std::array<uint32_t, 256> t{};
        for (uint32_t n = 0; n < 256; ++n) {
            uint32_t c = n;
            for (int bit = 0; bit < 8; ++bit)
                c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
            t[n] = c;
        }
        return t;
    }();
    return table;
}

uint32_t crc32_of(const uint8_t* data, size_t size) {
    const auto& table = crc_table();
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < size; ++i)
        c = table[(c ^ data[i]) & 0xff] ^ (c >> 8);
    return c ^ 0xffffffffu;
}

void append_chunk(std::vector<uint8_t>* png, const char* type, const uint8_t* data, size_t size) {
    append_u32(png, static_cast<uint32_t>(size));
    const size_t start = png->size();
    png->insert(png->end(), type, type + 4);
    png->insert(png->end(), data, data + size);
    append_u32(png, crc32_of(png->data() + start, size + 4));
}

#ifdef BONSAI_HAVE_ZLIB

int paeth(int a, int b, int c) {
    const int pa = std::abs(b - c), pb = std::abs(a - c), pc = std::abs(a + b - 2 * c);
    if (pa <= pb && pa <= pc) return a;
    return pb <= pc ? b : c;
}

// Filters one row into out and returns the sum of absolute differences, the measure that
// section 12.7 of the specification suggests for choosing. `above` is null in the first row.
uint64_t filter_row(int filter, const uint8_t* row, const uint8_t* above, size_t size,
                    uint8_t* out) {
    uint64_t sum = 0;
    for (size_t i = 0; i < size; ++i) {
        const int a = i >= kChannels ? row[i - kChannels] : 0;
        const int b = above != nullptr ? above[i] : 0;
        const int c = above != nullptr && i >= kChannels ? above[i - kChannels] : 0;
        int guess = 0;
        switch (filter) {
        case 1:
            guess = a;
            break;
        case 2:
            guess = b;
            break;
        case 3:
            guess = (a + b) / 2;
            break;
        case 4:
            guess = paeth(a, b, c);
            break;
        default:
            break;
        }
        out[i] = static_cast<uint8_t>(row[i] - guess);
        sum += static_cast<uint64_t>(std::abs(static_cast<int8_t>(out[i])));
    }
    return sum;
}

// Each row with the filter that leaves the least, behind its filter byte.
std::vector<uint8_t> filter_rows(const uint8_t* rgb, size_t row_size, size_t rows) {
    std::vector<uint8_t> out(rows * (row_size + 1));
    std::vector<uint8_t> candidate(row_size);
    for (size_t y = 0; y < rows; ++y) {
        const uint8_t* row = rgb + y * row_size;
        const uint8_t* above = y > 0 ? row - row_size : nullptr;
        uint8_t* target = out.data() + y * (row_size + 1);
        uint64_t best = UINT64_MAX;
        for (int filter = 0; filter < 5; ++filter) {
            const uint64_t sum = filter_row(filter, row, above, row_size, candidate.data());
            if (sum >= best) continue;
            best = sum;
            target[0] = static_cast<uint8_t>(filter);
            std::memcpy(target + 1, candidate.data(), row_size);
        }
    }
    return out;
}

Status compress_rows(const uint8_t* rgb, size_t row_size, size_t rows, std::vector<uint8_t>* out) {
    const std::vector<uint8_t> raw = filter_rows(rgb, row_size, rows);
    uLongf size = compressBound(static_cast<uLong>(raw.size()));
    out->resize(size);
    const int rc = compress2(out->data(), &size, raw.data(), static_cast<uLong>(raw.size()), 6);
    if (rc != Z_OK)
        return fail(ErrorCode::kMemory, "cannot compress the picture: zlib error %d", rc);
    out->resize(size);
    return Status();
}

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

// zlib format with stored blocks only. Unfiltered, as nothing is gained from a filter.
Status compress_rows(const uint8_t* rgb, size_t row_size, size_t rows, std::vector<uint8_t>* out) {
    constexpr size_t kBlock = 65535;
    const size_t total = rows * (row_size + 1);
    out->reserve(total + total / kBlock * 5 + 16);
    out->assign({0x78, 0x01});
    uint32_t low = 1, high = 0; // Adler-32
    size_t done = 0;
    const auto put = [&](uint8_t byte) {
        if (done % kBlock == 0) {
            const size_t length = total - done < kBlock ? total - done : kBlock;
            out->push_back(done + length == total ? 1 : 0);
            for (const size_t value : {length, ~length})
                for (int shift = 0; shift < 16; shift += 8)
                    out->push_back(static_cast<uint8_t>(value >> shift));
        }
        out->push_back(byte);
        low = (low + byte) % 65521;
        high = (high + low) % 65521;
        ++done;
    };
    for (size_t y = 0; y < rows; ++y) {
        put(0);
        for (size_t i = 0; i < row_size; ++i)
            put(rgb[y * row_size + i]);
    }
    append_u32(out, high << 16 | low);
    return Status();
}

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

Status encode_png(const uint8_t* rgb, int32_t width, int32_t height, const std::string& metadata,
                  std::vector<uint8_t>* png) {
    if (rgb == nullptr || width < 1 || height < 1)
        return fail(ErrorCode::kArgument, "no picture to write: %d x %d pixels", width, height);
    const uint64_t row_size = static_cast<uint64_t>(width) * kChannels;
    if ((row_size + 1) > kMaxRawBytes / static_cast<uint64_t>(height))
        return fail(ErrorCode::kUnsupported, "%d x %d pixels do not fit into a PNG of one chunk",
                    width, height);
    if (metadata.size() > kMaxMetadata)
        return fail(ErrorCode::kArgument, "metadata of %zu bytes; at most %u are kept in a PNG",
                    metadata.size(), kMaxMetadata);

    std::vector<uint8_t> rows;
    BONSAI_TRY(compress_rows(rgb, row_size, static_cast<size_t>(height), &rows));

    png->clear();
    png->reserve(rows.size() + metadata.size() + 128);
    png->insert(png->end(), kSignature, kSignature + 8);
    std::vector<uint8_t> header;
    append_u32(&header, static_cast<uint32_t>(width));
    append_u32(&header, static_cast<uint32_t>(height));
    header.insert(header.end(),
                  {8, 2, 0, 0, 0}); // 8 bits, RGB, deflate, adaptive filters, no interlace
    append_chunk(png, "IHDR", header.data(), header.size());
    if (!metadata.empty()) {
        std::vector<uint8_t> text(kPngKeyword, kPngKeyword + sizeof(kPngKeyword));
        text.insert(text.end(),
                    {0, 0, 0, 0}); // not compressed, method, empty language and translation
        text.insert(text.end(), metadata.begin(), metadata.end());
        append_chunk(png, "iTXt", text.data(), text.size());
    }
    append_chunk(png, "IDAT", rows.data(), rows.size());
    append_chunk(png, "IEND", nullptr, 0);
    return Status();
}

namespace {

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
            std::memcmp(signature, kSignature, sizeof(signature)) != 0)
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
        if (read_u32(crc) != crc32_of(data->data(), data->size()))
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

Status read_png_metadata(const std::string& path, std::string* metadata) {
    metadata->clear();
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
