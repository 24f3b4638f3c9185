// SPDX-License-Identifier: Apache-2.0
// The input is a PNG file: read its metadata as `bonsai-cli --from` does. Every input is read
// twice, as it is and with the checksums of its chunks put right, as a fuzzer does not guess them.
#include <algorithm>
#include <array>
#include <vector>

#include "core/png.h"
#include "failure.h"
#include "memory_file.h"
#include "metadata.h"
#include "require.h"

namespace {

uint32_t crc32(const uint8_t* data, size_t size) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < size; ++i) {
        c ^= data[i];
        for (int bit = 0; bit < 8; ++bit)
            c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    }
    return ~c;
}

uint32_t big_endian(const uint8_t* p) {
    return static_cast<uint32_t>(p[0]) << 24 | static_cast<uint32_t>(p[1]) << 16 |
           static_cast<uint32_t>(p[2]) << 8 | p[3];
}

void repair_checksums(std::vector<uint8_t>* png) {
    for (size_t at = 8; at + 12 <= png->size();) {
        uint8_t* chunk = png->data() + at;
        const size_t length = big_endian(chunk);
        if (length > png->size() - at - 12) return;
        const uint32_t crc = crc32(chunk + 4, length + 4);
        for (int i = 0; i < 4; ++i)
            chunk[8 + length + static_cast<size_t>(i)] = static_cast<uint8_t>(crc >> (24 - 8 * i));
        at += length + 12;
    }
}

// What was read can be written and read again.
void round_trip(const std::string& text) {
    const uint8_t rgb[3] = {1, 2, 3};
    std::vector<uint8_t> png;
    if (text.empty() || !bonsai::encode_png(rgb, 1, 1, text, &png).ok()) return;
    std::string again;
    const bonsai::Status status =
        bonsai::read_png_metadata(fuzz::memory_file(png.data(), png.size()), &again);
    fuzz::require(status.ok() && again == text, "metadata survives a round trip", text);
}

void read(const uint8_t* data, size_t size) {
    const std::string path = fuzz::memory_file(data, size);
    char* text = nullptr;
    const bonsai_status status = bonsai_png_read_metadata(path.c_str(), &text);
    fuzz::require_reason(status);
    if (status != BONSAI_OK) return;
    fuzz::require(bonsai::find_invalid_utf8(text) == std::string::npos, "metadata is UTF-8", text);
    bonsai::cli::Options options;
    options.from = path;
    try {
        bonsai::cli::apply_metadata(options);
        fuzz::require(options.prompt && options.seed, "prompt and seed are there", text);
        fuzz::require(!options.width == !options.height, "both sides of a size", text);
        fuzz::require(options.steps.value_or(1) >= 1, "steps are checked", text);
    } catch (const bonsai::cli::Failure& failure) {
        fuzz::require(failure.exit_code() == bonsai::cli::kExitModel, "the picture is to blame",
                      failure.what());
    }
    round_trip(text);
    bonsai_free(text);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    read(data, size);
    std::vector<uint8_t> repaired(data, data + size);
    repair_checksums(&repaired);
    read(repaired.data(), repaired.size());
    return 0;
}
