// SPDX-License-Identifier: Apache-2.0
// Lets the Python tests call the tokenizer: tokenize_tool <tokenizer file> < texts > ids. A text is
// a u32 length and the bytes; an answer is an i32 count and that many i32 ids, or -1, a u32 length
// and the error message. Integers are in host order. Times and the private memory of the tokenizer
// go to stderr as one line of JSON.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "support/tokenizer_file.h"

namespace {

// Processor time: all is on one thread, and other programs do not disturb the measurement.
double now_ms() {
    return 1e3 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// A "<key>: <n> kB" line of /proc/self/status; 0 where there is none.
long status_kb(const char* key) {
    const std::string status = test::read_text_file("/proc/self/status");
    const size_t at = status.find(key);
    return at == std::string::npos ? 0 : std::atol(status.c_str() + at + std::strlen(key) + 1);
}

template <typename T> void write_all(const T* values, size_t count) {
    std::fwrite(values, sizeof(T), count, stdout);
}

bool read_text(std::string* text) {
    uint32_t size = 0;
    if (std::fread(&size, sizeof size, 1, stdin) != 1) return false;
    text->resize(size);
    return size == 0 || std::fread(&(*text)[0], 1, size, stdin) == size;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: tokenize_tool <tokenizer file>\n");
        return 2;
    }
    std::string file = test::read_text_file(argv[1]);
    std::unique_ptr<bonsai::Tokenizer> tokenizer;
    double create_ms = 0;
    long create_kb = 0;
    {
        const bonsai::TokenizerData data = test::parse_tokenizer(&file);
        const long before_kb = status_kb("RssAnon");
        const double start = now_ms();
        const bonsai::Status status = bonsai::Tokenizer::create(data, &tokenizer);
        create_ms = now_ms() - start;
        create_kb = status_kb("RssAnon") - before_kb;
        if (!status.ok()) {
            std::fprintf(stderr, "%s\n", status.message().c_str());
            return 1;
        }
    }
    double encode_ms = 0, longest_ms = 0;
    std::string text;
    std::vector<int32_t> ids;
    while (read_text(&text)) {
        const double start = now_ms();
        const bonsai::Status status = tokenizer->encode(text, &ids);
        const double took = now_ms() - start;
        encode_ms += took;
        longest_ms = took > longest_ms ? took : longest_ms;
        const auto count = status.ok() ? static_cast<int32_t>(ids.size()) : -1;
        write_all(&count, 1);
        if (status.ok()) {
            write_all(ids.data(), ids.size());
        } else {
            const auto size = static_cast<uint32_t>(status.message().size());
            write_all(&size, 1);
            write_all(status.message().data(), size);
        }
    }
    std::fprintf(stderr,
                 "{\"create_ms\": %.1f, \"create_kb\": %ld, \"encode_ms\": %.1f, "
                 "\"longest_ms\": %.1f, \"peak_kb\": %ld}\n",
                 create_ms, create_kb, encode_ms, longest_ms, status_kb("VmHWM"));
    return 0;
}
