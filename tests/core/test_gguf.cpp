// SPDX-License-Identifier: Apache-2.0
// The GGUF reader on good files, on files cut off anywhere, and on fields that lie.
#include "core/gguf.h"

#include <cstdlib>
#include <limits>

#include "core/describe.h"
#include "core/sha256.h"
#include "support/gguf_builder.h"
#include "test.h"

using namespace bonsai;
using test::GgufBuilder;
using test::TempFile;

static Status open(const std::string& bytes, std::unique_ptr<GgufFile>* out) {
    const TempFile file(bytes);
    return GgufFile::open(file.path(), out);
}

static GgufBuilder small_file() {
    GgufBuilder b;
    b.text("general.architecture", "bonsai");
    b.u32("answer", 42);
    b.f32("half", 0.5f);
    b.boolean("yes", true);
    b.u32_array("three", {1, 2, 3});
    b.text_array("words", {"a", "", "tree"});
    b.tensor("t.first", 0, {3, 2}, std::string(24, 'x'));
    b.tensor("t.packed", 143, {128, 2}, std::string(56, 'y'));
    return b;
}

TEST(reads_keys_and_tensors) {
    std::unique_ptr<GgufFile> file;
    CHECK_OK(open(small_file().bytes(), &file));
    if (!file) return;
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    std::string_view text;
    std::vector<int64_t> integers;
    std::vector<std::string_view> words;
    CHECK_OK(file->get("answer", &integer));
    CHECK(integer == 42);
    CHECK_OK(file->get("half", &number));
    CHECK(number == 0.5);
    CHECK_OK(file->get("yes", &flag));
    CHECK(flag);
    CHECK_OK(file->get("general.architecture", &text));
    CHECK(text == "bonsai");
    CHECK_OK(file->get("three", &integers));
    CHECK(integers == (std::vector<int64_t>{1, 2, 3}));
    CHECK_OK(file->get("words", &words));
    CHECK(words.size() == 3 && words[1].empty() && words[2] == "tree");
    CHECK(file->tensors().size() == 2);
    const GgufTensor* packed = file->find("t.packed");
    CHECK(packed && packed->bytes == 56 && file->data(*packed)[0] == 'y');
    CHECK(file->find("nothing") == nullptr);
    CHECK(describe_text(*file).find("PTQ1_0") != std::string::npos);
    CHECK(describe_json(*file).find("\"shape\": [2, 128]") != std::string::npos);
}

TEST(strings_are_described_as_json_wants_them) {
    GgufBuilder b;
    b.text("text", "caf\xc3\xa9 \"\\ \n\x7f \xff \xed\xa0\x80 \xe2\x82");
    std::unique_ptr<GgufFile> file;
    CHECK_OK(open(b.bytes(), &file));
    if (!file) return;
    const std::string bad = "\xef\xbf\xbd"; // U+FFFD
    CHECK(describe_json(*file).find("\"caf\xc3\xa9 \\\"\\\\ \\u000a\\u007f " + bad + " " + bad +
                                    bad + bad + " " + bad + bad + "\"") != std::string::npos);
}

TEST(every_number_type_is_read_and_described) {
    GgufBuilder b;
    b.number("u8", 0, uint8_t(200)).number("i8", 1, int8_t(-100));
    b.number("u16", 2, uint16_t(60000)).number("i16", 3, int16_t(-30000));
    b.u32("u32", 4000000000u).number("i32", 5, int32_t(-2000000000));
    b.number("u64", 10, uint64_t(1) << 62).number("i64", 11, -(int64_t(1) << 62));
    b.number("huge", 10, UINT64_MAX).number("f64", 12, 0.1).boolean("no", false);
    b.f32("infinite", std::numeric_limits<float>::infinity());
    b.u32_array("many", std::vector<uint32_t>(100, 7));
    std::unique_ptr<GgufFile> file;
    CHECK_OK(open(b.bytes(), &file));
    if (!file) return;
    const std::pair<const char*, int64_t> integers[] = {{"u8", 200},
                                                        {"i8", -100},
                                                        {"u16", 60000},
                                                        {"i16", -30000},
                                                        {"u32", 4000000000},
                                                        {"i32", -2000000000},
                                                        {"u64", int64_t(1) << 62},
                                                        {"i64", -(int64_t(1) << 62)}};
    const std::string json = describe_json(*file);
    for (const auto& [key, expected] : integers) {
        int64_t found = 0;
        CHECK_OK(file->get(key, &found));
        CHECK(found == expected);
        CHECK(json.find(format("\"%s\": %lld", key, static_cast<long long>(expected))) !=
              std::string::npos);
    }
    for (const char* text : {"\"huge\": 18446744073709551615", "\"f64\": 0.1000000000000000",
                             "\"no\": false", "\"infinite\": null", "\"many\": {\"length\": 100}"})
        CHECK(json.find(text) != std::string::npos);
    CHECK(describe_text(*file).find("many = [7, 7, 7, 7, 7, 7, 7, 7, ...] (100 u32)") !=
          std::string::npos);
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    std::vector<int64_t> list;
    std::vector<std::string_view> words;
    CHECK_FAILS(file->get("huge", &integer), ErrorCode::kFormat, "huge is above 2^63 - 1");
    CHECK_FAILS(file->get("infinite", &number), ErrorCode::kFormat, "not a finite number");
    CHECK_FAILS(file->get("u8", &number), ErrorCode::kFormat, "u8 should be a float");
    CHECK_FAILS(file->get("u8", &flag), ErrorCode::kFormat, "u8 should be a bool");
    CHECK_FAILS(file->get("u8", &list), ErrorCode::kFormat, "u8 should be an array of integers");
    CHECK_FAILS(file->get("many", &words), ErrorCode::kFormat,
                "many should be an array of strings");
    CHECK_OK(file->get("f64", &number));
    CHECK(number == 0.1);
}

TEST(wrong_types_and_missing_keys_are_named) {
    std::unique_ptr<GgufFile> file;
    CHECK_OK(open(small_file().bytes(), &file));
    int64_t integer = 0;
    std::string_view text;
    CHECK_FAILS(file->get("half", &integer), ErrorCode::kFormat,
                "half should be an integer, but is f32");
    CHECK_FAILS(file->get("three", &text), ErrorCode::kFormat,
                "three should be a string, but is an array of u32");
    CHECK_FAILS(file->get("missing", &text), ErrorCode::kFormat, "the key missing is missing");
}

TEST(truncation_at_every_byte_is_an_error) {
    const std::string whole = small_file().bytes();
    const size_t padding = 8; // behind the last tensor
    for (size_t size = 0; size < whole.size() - padding; ++size) {
        std::unique_ptr<GgufFile> file;
        CHECK(!open(whole.substr(0, size), &file).ok());
    }
}

TEST(every_flipped_header_byte_is_survived) {
    const std::string whole = small_file().bytes();
    for (size_t at = 0; at < whole.size() - 24; ++at) {
        for (const unsigned char flip : {0x01, 0x80, 0xff}) {
            std::string bytes = whole;
            bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ flip);
            std::unique_ptr<GgufFile> file;
            if (open(bytes, &file).ok()) CHECK(!describe_json(*file).empty());
        }
    }
}

TEST(lies_are_refused) {
    struct Lie {
        GgufBuilder builder;
        const char* message;
    };
    std::vector<Lie> lies;
    auto lie = [&](const char* message) -> GgufBuilder& {
        lies.push_back({GgufBuilder(), message});
        return lies.back().builder;
    };
    lie("stands twice").u32("k", 1).u32("k", 2);
    lie("stands twice").tensor("t", 0, {1}, "abcd").tensor("t", 0, {1}, "abcd");
    lie("control character").u32("a\x1b[31m", 1);
    lie("control character").tensor("t\n", 0, {1}, "abcd");
    lie("is not UTF-8").u32("k\xff", 1);
    lie("is not UTF-8").tensor("t\xed\xa0\x80", 0, {1}, "abcd");
    lie("not possible").tensor("t", 0, {0}, "");
    lie("not possible").tensor("t", 0, {uint64_t(1) << 62, 4}, "abcd");
    lie("not possible").tensor("t", 0, {uint64_t(1) << 33, uint64_t(1) << 33}, "abcd");
    lie("cut off").tensor("t", 0, {1000}, "abcd");
    lie("blocks of 128").tensor("t", 143, {100}, std::string(28, ' '));
    lie("power of two").u32("general.alignment", 24).tensor("t", 0, {1}, "abcd");
    lie("power of two").u32("general.alignment", 0).tensor("t", 0, {1}, "abcd");
    lie("overlaps")
        .tensor("a", 0, {8}, std::string(32, 'a'))
        .tensor("b", 0, {8}, std::string(32, 'b'))
        .offset(1, 0);
    lie("not a multiple").tensor("a", 0, {1}, "abcd").offset(0, 7);
    for (const Lie& l : lies) {
        std::unique_ptr<GgufFile> file;
        CHECK_FAILS(open(l.builder.bytes(), &file), ErrorCode::kFormat, l.message);
    }
}

TEST(other_files_are_named) {
    std::unique_ptr<GgufFile> file;
    CHECK_FAILS(open("<!DOCTYPE html><html>not found</html>", &file), ErrorCode::kFormat,
                "web page");
    CHECK_FAILS(open("", &file), ErrorCode::kFormat, "empty");
    CHECK_FAILS(open(std::string(100, 'z'), &file), ErrorCode::kFormat, "not a GGUF file");
    CHECK_FAILS(GgufFile::open("/no/such/file.gguf", &file), ErrorCode::kIo, "/no/such/file.gguf");
}

TEST(hashes_are_verified) {
    const std::string good(24, 'x');
    Sha256 sha;
    sha.update(good.data(), good.size());
    const std::string hash = sha.hex();
    for (const bool damaged : {false, true}) {
        GgufBuilder b;
        b.text_array("bonsai.tensor_sha256", {hash});
        b.tensor("t", 0, {6}, damaged ? "y" + good.substr(1) : good);
        const TempFile temp(b.bytes());
        std::unique_ptr<GgufFile> file;
        CHECK_OK(GgufFile::open(temp.path(), &file));
        const Status status =
            verify_hashes(*file, [](double, std::string_view) { return Status(); });
        CHECK(status.ok() == !damaged);
        CHECK(!damaged || status.message().find("tensor t is damaged") != std::string::npos);
    }
}

TEST(sha256_known_answers) { // FIPS 180-4 examples
    Sha256 empty, abc, million;
    CHECK(empty.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    abc.update("abc", 3);
    CHECK(abc.hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (int i = 0; i < 1000; ++i)
        million.update(std::string(1000, 'a').data(), 1000);
    CHECK(million.hex() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}
