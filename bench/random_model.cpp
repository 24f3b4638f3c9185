// SPDX-License-Identifier: Apache-2.0
// bonsai-random-model: a model file of any size with random weights, from the header of another:
// times do not depend on what the weights are, and a header is small enough to take anywhere.
//
//   bonsai-random-model header MODEL.gguf HEADER      # keys, names and shapes only
//   bonsai-random-model fill HEADER MODEL.gguf
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "core/gguf.h"
#include "core/quantize.h"

namespace {

using namespace bonsai;

constexpr int64_t kPool = int64_t{4} << 20; // weights that are drawn; longer tensors repeat them

float uniform(uint64_t counter) { // SplitMix64 (Steele, Lea, Flood 2014), in [-1, 1)
    uint64_t z = counter * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1;
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Packed weights of a type whose products with K inputs of size 1 have size 1; vectors are 1, and 0
// where they are added.
Status draw(DType dtype, int64_t k, bool vector, bool zero, std::vector<uint8_t>* out) {
    const int64_t block = dtype_info(dtype).block;
    const int64_t count = vector ? k : kPool / block * block;
    std::vector<float> values(static_cast<size_t>(count));
    const float size = std::sqrt(3.0f / static_cast<float>(k));
    for (size_t i = 0; i < values.size(); ++i)
        values[i] = vector ? (zero ? 0.0f : 1.0f) : size * uniform(i + 1);
    out->resize(row_bytes(dtype, count));
    return quantize_rows(dtype, values.data(), 1, count, out->data());
}

Status make_header(const std::string& model, const std::string& header) {
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(model, &file));
    uint64_t end = file->file().size();
    for (const GgufTensor& tensor : file->tensors())
        end = std::min(end, tensor.offset);
    std::ofstream out(header, std::ios::binary);
    out << file->file().size() << '\n';
    out.write(reinterpret_cast<const char*>(file->file().data()),
              static_cast<std::streamsize>(end));
    return out.flush() ? Status() : fail(ErrorCode::kIo, "%s: cannot write", header.c_str());
}

Status fill(const std::string& header, const std::string& model) {
    std::ifstream in(header, std::ios::binary);
    uint64_t size = 0;
    in >> size;
    in.get();
    const std::string keys((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::fstream out(model, std::ios::binary | std::ios::in | std::ios::out | std::ios::trunc);
    out << keys;
    out.seekp(static_cast<std::streamoff>(size - 1)).put('\0');
    if (!in || !out.flush()) return fail(ErrorCode::kIo, "%s: cannot write", model.c_str());
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(model, &file));
    std::map<std::pair<DType, int64_t>, std::vector<uint8_t>> pools;
    for (const GgufTensor& tensor : file->tensors()) {
        DType dtype;
        if (!dtype_from_gguf(tensor.type_id, &dtype))
            return fail(ErrorCode::kUnsupported, "%s: unknown type", model.c_str());
        const bool vector = tensor.dims == 1;
        const bool zero = ends_with(tensor.name, "bias") || ends_with(tensor.name, "_mean");
        const auto k = static_cast<int64_t>(
            vector ? tensor.ne[0] : tensor.elements() / tensor.ne[tensor.dims - 1]);
        std::vector<uint8_t> own;
        std::vector<uint8_t>& data = vector ? own : pools[{dtype, k}];
        if (data.empty()) BONSAI_TRY(draw(dtype, k, vector, zero, &data));
        out.seekp(static_cast<std::streamoff>(tensor.offset));
        for (uint64_t done = 0; done < tensor.bytes; done += data.size())
            out.write(
                reinterpret_cast<const char*>(data.data()),
                static_cast<std::streamsize>(std::min<uint64_t>(data.size(), tensor.bytes - done)));
    }
    return out.flush() ? Status() : fail(ErrorCode::kIo, "%s: cannot write", model.c_str());
}

} // namespace

int main(int argc, char** argv) {
    const std::string what = argc == 4 ? argv[1] : "";
    if (what != "header" && what != "fill") {
        std::fprintf(stderr, "usage: bonsai-random-model header MODEL HEADER\n"
                             "       bonsai-random-model fill HEADER MODEL\n");
        return 2;
    }
    const Status status = what == "header" ? make_header(argv[2], argv[3]) : fill(argv[2], argv[3]);
    if (!status.ok()) std::fprintf(stderr, "error: %s\n", status.message().c_str());
    return status.ok() ? 0 : 1;
}
