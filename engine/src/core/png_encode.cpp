// SPDX-License-Identifier: Apache-2.0
// A picture as a PNG: rows are filtered, then zlib (RFC 1950), in one IDAT chunk. See the PNG
// specification, third edition, sections 9 and 12.
#include <cstdlib>
#include <cstring>

#include "core/png.h"
#include "core/png_format.h"

#ifdef BONSAI_HAVE_ZLIB
#include <zlib.h>
#endif

namespace bonsai {
namespace {

constexpr int kChannels = 3;
// Keeps the stored form of the largest picture below the 2^31 - 1 bytes a chunk may have.
constexpr uint64_t kMaxRawBytes = 0x7f000000;
// What read_png_metadata takes, less room for the keyword.
constexpr uint32_t kMaxMetadata = kPngTextLimit - 1024;

void append_u32(std::vector<uint8_t>* out, uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8)
        out->push_back(static_cast<uint8_t>(value >> shift));
}

void append_chunk(std::vector<uint8_t>* png, const char* type, const uint8_t* data, size_t size) {
    append_u32(png, static_cast<uint32_t>(size));
    const size_t start = png->size();
    png->insert(png->end(), type, type + 4);
    png->insert(png->end(), data, data + size);
    append_u32(png, png_crc32(png->data() + start, size + 4));
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

#endif

} // namespace

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
    png->insert(png->end(), kPngSignature, kPngSignature + sizeof(kPngSignature));
    std::vector<uint8_t> header;
    append_u32(&header, static_cast<uint32_t>(width));
    append_u32(&header, static_cast<uint32_t>(height));
    // 8 bits, RGB, deflate, adaptive filters, no interlace.
    header.insert(header.end(), {8, 2, 0, 0, 0});
    append_chunk(png, "IHDR", header.data(), header.size());
    if (!metadata.empty()) {
        std::vector<uint8_t> text(kPngKeyword, kPngKeyword + sizeof(kPngKeyword));
        // Not compressed, method, empty language and translation.
        text.insert(text.end(), {0, 0, 0, 0});
        text.insert(text.end(), metadata.begin(), metadata.end());
        append_chunk(png, "iTXt", text.data(), text.size());
    }
    append_chunk(png, "IDAT", rows.data(), rows.size());
    append_chunk(png, "IEND", nullptr, 0);
    return Status();
}

} // namespace bonsai
