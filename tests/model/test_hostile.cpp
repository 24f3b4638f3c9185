// SPDX-License-Identifier: Apache-2.0
// The library on tests/data/hostile: each file gives the words that expected.tsv asks for.
#include <fstream>
#include <set>
#include <sstream>

#include "bonsai.h"
#include "core/describe.h"
#include "core/png.h"
#include "model/pipeline.h"
#include "support/gguf_builder.h"
#include "test.h"

using namespace bonsai;

namespace {

const std::string kFolder = std::string(BONSAI_TEST_DATA) + "/hostile/";

struct Row {
    std::string file, reader, words;
};

std::vector<Row> read_table() {
    std::vector<Row> rows;
    std::ifstream table(kFolder + "expected.tsv");
    std::string line;
    std::getline(table, line);
    while (std::getline(table, line)) {
        std::istringstream fields(line);
        Row row;
        std::getline(fields, row.file, '\t');
        std::getline(fields, row.reader, '\t');
        std::getline(fields, row.words);
        rows.push_back(row);
    }
    return rows;
}

Status open_model(const std::string& path) {
    std::unique_ptr<Pipeline> pipeline;
    return Pipeline::open(path, PipelineOptions(), &pipeline);
}

Status describe(const std::string& path) {
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(path, &file));
    CHECK(!describe_text(*file).empty() && !describe_json(*file).empty());
    return Status();
}

Status verify(const std::string& path) {
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(path, &file));
    return verify_hashes(*file, [](double, std::string_view) { return Status(); });
}

void check_refused(const Row& row, const Status& status) {
    if (status.message().find(row.words) == std::string::npos)
        std::printf("%s: expected %s, got: %s\n", row.file.c_str(), row.words.c_str(),
                    status.message().c_str());
    CHECK(status.message().find(row.words) != std::string::npos);
    CHECK(status.message().find(kFolder + row.file) != std::string::npos);
    CHECK(status.code() == ErrorCode::kFormat || status.code() == ErrorCode::kUnsupported);
}

} // namespace

TEST(every_file_is_refused_for_its_reason) {
    std::set<std::string> readers;
    for (const Row& row : read_table()) {
        readers.insert(row.reader);
        const std::string path = kFolder + row.file;
        if (row.reader == "gguf") {
            check_refused(row, describe(path));
            check_refused(row, open_model(path));
        } else if (row.reader == "model") {
            CHECK_OK(describe(path)); // the container is good
            check_refused(row, open_model(path));
        } else if (row.reader == "verify") {
            CHECK_OK(describe(path));
            check_refused(row, verify(path));
        } else if (row.reader == "png") {
            std::string text;
            const Status status = read_png_metadata(path, &text);
            // Lines that are well-formed text are for the command line to judge.
            if (!status.ok()) check_refused(row, status);
            CHECK(!status.ok() || text.find("prompt: a\n") == 0);
        }
    }
    for (const char* reader : {"gguf", "model", "verify", "png"})
        CHECK(readers.count(reader) == 1);
}

TEST(a_model_cut_at_every_byte_of_its_header) {
    std::ifstream whole(kFolder + "model/tensors-none.gguf", std::ios::binary);
    std::ostringstream bytes;
    bytes << whole.rdbuf();
    const std::string text = bytes.str();
    CHECK(text.size() > 4000);
    const size_t padding = 32;
    for (size_t size = 1; size + padding < text.size(); ++size) {
        std::unique_ptr<MappedFile> cut;
        std::unique_ptr<GgufFile> file;
        CHECK_OK(MappedFile::from_memory("cut.gguf", text.data(), size, &cut));
        const Status status = GgufFile::open(std::move(cut), &file);
        CHECK(status.code() == ErrorCode::kFormat);
        CHECK(status.message().find(size < 24 ? "not a GGUF file" : "ends inside its header") !=
              std::string::npos);
    }
}

#ifndef _WIN32
// A claim that a large file could honour is not enough to be given memory.
TEST(a_header_of_gigabytes_is_not_loaded) {
    GgufBuilder builder;
    builder.text("a", "b");
    std::string bytes = builder.bytes();
    bytes.resize(24 + 8 + 1 + 4); // up to the value of the key
    const uint32_t array[2] = {9, 0};
    std::memcpy(&bytes[24 + 8 + 1], &array[0], 4);
    bytes.append(reinterpret_cast<const char*>(&array[1]), 4);
    const uint64_t count = uint64_t(3) << 30;
    bytes.append(reinterpret_cast<const char*>(&count), 8);
    const test::TempFile file(bytes);
    CHECK(::truncate(file.path().c_str(), off_t(4) << 30) == 0); // sparse
    std::unique_ptr<GgufFile> opened;
    CHECK_FAILS(GgufFile::open(file.path(), &opened), ErrorCode::kFormat,
                "its header has more than 134217728 bytes");
}
#endif

// Names chosen to fall into one place of the table that finds tokens.
TEST(a_vocabulary_that_collides_is_refused) {
    const auto hash = [](const std::string& text) {
        uint64_t h = 0xcbf29ce484222325u;
        for (const char c : text)
            h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
        return static_cast<uint32_t>(h ^ h >> 32);
    };
    std::vector<std::string> tokens;
    for (uint64_t i = 0; tokens.size() < 1200; ++i) {
        const std::string text = "x" + std::to_string(i);
        if ((hash(text) & 2047) == 5) tokens.push_back(text);
    }
    const std::vector<std::string_view> views(tokens.begin(), tokens.end());
    Bpe bpe;
    CHECK_FAILS(bpe.init(views, std::vector<uint8_t>(views.size(), 1), {}), ErrorCode::kFormat,
                "chosen so that finding them takes long");
}
