// SPDX-License-Identifier: Apache-2.0
// Metadata round trip and hostile PNG files. That the pictures are right is checked by test_png.py
// with another decoder.
#include "test.h"

#include <filesystem>
#include <fstream>
#include <random>
#ifndef _WIN32
#include <unistd.h>
#endif

#include "core/file_output.h"
#include "core/png.h"

namespace fs = std::filesystem;
using namespace bonsai;

namespace {

// A folder of its own, removed with everything in it.
struct TempDir {
    fs::path path;
    TempDir() {
        std::random_device random;
        path = fs::temp_directory_path() / ("bonsai-png-" + std::to_string(random()));
        fs::create_directories(path);
    }
    ~TempDir() { fs::remove_all(path); }
    std::string file(const char* name) const { return (path / name).string(); }
    size_t count() const {
        return static_cast<size_t>(
            std::distance(fs::directory_iterator(path), fs::directory_iterator()));
    }
};

using Bytes = std::vector<uint8_t>;

Bytes small_png(const std::string& metadata) {
    const Bytes rgb(5 * 3 * 3, 200);
    Bytes png;
    CHECK_OK(encode_png(rgb.data(), 5, 3, metadata, &png));
    return png;
}

void put(const std::string& path, const Bytes& bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
}

Status read_back(const TempDir& dir, const Bytes& bytes, std::string* text) {
    put(dir.file("in.png"), bytes);
    return read_png_metadata(dir.file("in.png"), text);
}

uint32_t crc(const Bytes& data) {
    uint32_t c = 0xffffffffu;
    for (const uint8_t byte : data) {
        c ^= byte;
        for (int bit = 0; bit < 8; ++bit)
            c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    }
    return ~c;
}

// A chunk as a file holds it, with the length it claims.
Bytes chunk(const std::string& type, const std::string& data, uint32_t length) {
    Bytes body(type.begin(), type.end());
    body.insert(body.end(), data.begin(), data.end());
    Bytes out;
    for (const uint32_t value : {length, crc(body)}) {
        for (int shift = 24; shift >= 0; shift -= 8)
            out.push_back(static_cast<uint8_t>(value >> shift));
        if (out.size() == 4) out.insert(out.end(), body.begin(), body.end());
    }
    return out;
}

// Signature, header and the chunks.
Bytes file_of(std::initializer_list<Bytes> chunks) {
    Bytes out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const Bytes header = chunk("IHDR", std::string(13, '\1'), 13);
    out.insert(out.end(), header.begin(), header.end());
    for (const Bytes& c : chunks)
        out.insert(out.end(), c.begin(), c.end());
    return out;
}

Bytes text_file(const std::string& type, const std::string& data) {
    return file_of({chunk(type, data, static_cast<uint32_t>(data.size())), chunk("IEND", "", 0)});
}

} // namespace

TEST(metadata_comes_back) {
    const TempDir dir;
    const std::string text =
        metadata_line("prompt", "two\nlines \\ \r and \xe6\x97\xa5\xe6\x9c\xac") +
        metadata_line("seed", "42");
    CHECK(text == "prompt: two\\nlines \\\\ \\r and \xe6\x97\xa5\xe6\x9c\xac\nseed: 42\n");
    std::string read;
    CHECK_OK(read_back(dir, small_png(text), &read));
    CHECK(read == text);
}

TEST(picture_without_metadata) {
    const TempDir dir;
    std::string text;
    CHECK_FAILS(read_back(dir, small_png(""), &text), ErrorCode::kFormat, "no bonsai metadata");
    CHECK_FAILS(read_png_metadata(dir.file("missing.png"), &text), ErrorCode::kIo, "missing.png");
    CHECK_FAILS(read_png_metadata(dir.path.string(), &text), ErrorCode::kFormat, "not a PNG");
}

TEST(impossible_pictures) {
    const Bytes rgb(3, 0);
    Bytes png;
    CHECK_FAILS(encode_png(rgb.data(), 0, 1, "", &png), ErrorCode::kArgument, "0 x 1");
    CHECK_FAILS(encode_png(nullptr, 1, 1, "", &png), ErrorCode::kArgument, "no picture");
    CHECK_FAILS(encode_png(rgb.data(), 1 << 20, 1 << 20, "", &png), ErrorCode::kUnsupported, "fit");
    CHECK_FAILS(encode_png(rgb.data(), 1, 1, std::string(kPngTextLimit, 'x'), &png),
                ErrorCode::kArgument, "metadata");
}

TEST(text_chunks_of_other_programs) {
    const TempDir dir;
    std::string text;
    const std::string keyword(kPngKeyword, sizeof(kPngKeyword));
    CHECK_OK(read_back(dir, text_file("tEXt", keyword + "prompt: caf\xe9"), &text));
    CHECK(text == "prompt: caf\xc3\xa9");
    CHECK_OK(
        read_back(dir, text_file("iTXt", keyword + std::string("\0\0de\0Baum\0x: y", 14)), &text));
    CHECK(text == "x: y");
    // Another keyword first, one that only begins like ours.
    const Bytes other = chunk("tEXt", std::string("bonsais\0no", 10), 10);
    const std::string ours = keyword + "yes";
    CHECK_OK(read_back(
        dir, file_of({other, chunk("tEXt", ours, static_cast<uint32_t>(ours.size()))}), &text));
    CHECK(text == "yes");
}

TEST(damaged_text_chunks) {
    const TempDir dir;
    std::string text;
    const std::string keyword(kPngKeyword, sizeof(kPngKeyword));
    CHECK_FAILS(read_back(dir, text_file("iTXt", keyword), &text), ErrorCode::kFormat, "cut short");
    CHECK_FAILS(read_back(dir, text_file("iTXt", keyword + std::string("\0\0abc", 5)), &text),
                ErrorCode::kFormat, "cut short");
    CHECK_FAILS(read_back(dir, text_file("zTXt", keyword), &text), ErrorCode::kFormat, "cut short");
    CHECK_FAILS(read_back(dir, text_file("tEXt", keyword + std::string("a\0b", 3)), &text),
                ErrorCode::kFormat, "zero byte");
    CHECK_FAILS(
        read_back(dir, text_file("iTXt", keyword + std::string("\0\0\0\0ab\xff", 7)), &text),
        ErrorCode::kFormat, "not UTF-8 at byte 2");
    CHECK_FAILS(read_back(dir, text_file("iTXt", keyword + std::string("\2\0\0\0x", 5)), &text),
                ErrorCode::kFormat, "compression flag is 2");
    CHECK_FAILS(read_back(dir, text_file("iTXt", keyword + std::string("\1\7\0\0x", 5)), &text),
                ErrorCode::kFormat, "compression method is 7");
    CHECK_FAILS(read_back(dir, file_of({chunk("iT\nt", keyword, 7)}), &text), ErrorCode::kFormat,
                "not letters");
    CHECK(!read_back(dir, text_file("zTXt", keyword + std::string("\0garbage", 8)), &text).ok());
    CHECK(text.empty());
    // A length that runs past the end of the file, within the limit and far beyond it.
    for (const uint32_t length : {100u, kPngTextLimit, 0x7fffffffu})
        CHECK_FAILS(read_back(dir, file_of({chunk("iTXt", keyword, length)}), &text),
                    ErrorCode::kFormat, "cut off");
    CHECK_FAILS(read_back(dir, file_of({chunk("iTXt", keyword, 0xffffffffu)}), &text),
                ErrorCode::kFormat, "damaged");
    // Text above the limit is not loaded.
    CHECK_FAILS(read_back(dir, text_file("tEXt", keyword + std::string(kPngTextLimit, 'x')), &text),
                ErrorCode::kFormat, "no bonsai metadata");
}

TEST(every_cut_and_flip_ends_in_an_answer) {
    const TempDir dir;
    const std::string metadata = metadata_line("prompt", "an apple");
    const Bytes good = small_png(metadata);
    std::string text;
    for (size_t size = 0; size < good.size() - 12; ++size) {
        const Status status = read_back(dir, Bytes(good.begin(), good.begin() + size), &text);
        CHECK(status.ok() ? text == metadata : status.code() == ErrorCode::kFormat);
    }
    // One wrong byte is noticed or does not matter: it never gives other text.
    for (size_t i = 0; i < good.size(); ++i) {
        Bytes bad = good;
        bad[i] ^= 0x41;
        const Status status = read_back(dir, bad, &text);
        CHECK(status.ok() ? text == metadata : status.code() == ErrorCode::kFormat);
    }
}

TEST(write_file_replaces_or_leaves_alone) {
    const TempDir dir;
    const std::string path = dir.file("out.bin");
    CHECK_OK(write_file(path, "first", 5));
    CHECK_OK(write_file(path, "second", 6));
    CHECK(fs::file_size(path) == 6);
    CHECK_OK(write_file(path, nullptr, 0));
    CHECK(fs::file_size(path) == 0);
    CHECK(dir.count() == 1);
}

#ifndef _WIN32
TEST(write_file_steps_over_files_left_behind) {
    const TempDir dir;
    for (int i = 0; i < 60; ++i) // more than this program has written so far
        std::ofstream(dir.path / format(".bonsai-%d-%d.tmp", static_cast<int>(getpid()), i)) << "x";
    CHECK_OK(write_file(dir.file("picture"), "new", 3));
    CHECK(dir.count() == 61);
}
#endif

TEST(write_file_says_what_to_do) {
    const TempDir dir;
    CHECK_FAILS(write_file(dir.file("no/such/x.png"), "x", 1), ErrorCode::kIo, "create the folder");
    CHECK_FAILS(write_file(dir.path.string(), "x", 1), ErrorCode::kIo, "it is a folder");
    CHECK_FAILS(write_file(dir.file(std::string(300, 'n').c_str()), "x", 1), ErrorCode::kIo,
                "shorter name");
    CHECK(dir.count() == 0);
#if defined(__linux__)
    CHECK_FAILS(write_file("/dev/full", "x", 1), ErrorCode::kIo, "free some space");
    CHECK_OK(write_file("/dev/null", "x", 1));
    CHECK(fs::is_character_file("/dev/null"));
#endif
}

#if !defined(_WIN32)
TEST(write_file_follows_links) {
    const TempDir dir;
    CHECK_OK(write_file(dir.file("real"), "old", 3));
    fs::create_symlink("real", dir.path / "link");
    CHECK_OK(write_file(dir.file("link"), "newer", 5));
    CHECK(fs::is_symlink(dir.path / "link"));
    CHECK(fs::file_size(dir.path / "real") == 5);
    CHECK(dir.count() == 2);
}
#endif
