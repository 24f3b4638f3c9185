// SPDX-License-Identifier: Apache-2.0
// GgufFile: reader of GGUF version 3 over a mapped file. Every length, count and offset is checked
// against the file before use, so that whatever opens is safe to read. The header is read into
// memory of its own first: a program that writes to the file later cannot change what was checked.
//
//   "GGUF", u32 version = 3, u64 tensor count, u64 key count
//   for each key: string name, u32 type, value
//   for each tensor: string name, u32 dims, u64 ne[dims] (ne[0] contiguous), u32 type, u64 offset
//   zeros up to general.alignment (32), then the data; every offset is a multiple of it
//
//   string: u64 length, bytes. Array: u32 type, u64 count, values.
//
// More than the format asks for: no key or tensor twice, names in valid UTF-8 without control
// characters, no arrays of arrays, tensors in the order of their data and apart from each other.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "core/tensor.h"

namespace bonsai {

enum class GgufType : uint32_t {
    kU8 = 0,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64,
};

struct GgufTensor {
    std::string_view name;
    // As in the file, but 142 for the 128-weight blocks that old files call 42; may be one that
    // this engine cannot read.
    uint32_t type_id = 0;
    int dims = 0;
    uint64_t ne[4] = {1, 1, 1, 1};
    uint64_t offset = 0; // from the start of the file
    uint64_t bytes = 0;  // 0 when the type is unknown
    uint64_t elements() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
};

struct GgufValue {
    GgufType type = GgufType::kU8; // of the value, or of the elements of an array
    bool is_array = false;
    uint64_t count = 1;
    const uint8_t* data = nullptr; // first element
};

class GgufCursor;

// Elements that an array is turned into at most; the vocabularies in use have some 250 000.
constexpr uint64_t kMaxArray = 1 << 22;

class GgufFile {
  public:
    static Status open(const std::string& path, std::unique_ptr<GgufFile>* out);
    static Status open(std::unique_ptr<MappedFile> file, std::unique_ptr<GgufFile>* out);

    const MappedFile& file() const { return *file_; }
    const std::vector<GgufTensor>& tensors() const { return tensors_; }
    const GgufTensor* find(std::string_view name) const; // null: not there
    // Keys in file order.
    const std::vector<std::pair<std::string_view, GgufValue>>& keys() const { return keys_; }
    bool has(std::string_view key) const { return key_index_.count(key) != 0; }

    // Typed access. Missing keys and other types are errors that name the key, expected and found.
    // Integers convert between widths when the value fits. Arrays are refused, before any memory is
    // taken, when they have more than `most` elements.
    Status get(std::string_view key, int64_t* out) const;
    Status get(std::string_view key, double* out) const;
    Status get(std::string_view key, bool* out) const;
    Status get(std::string_view key, std::string_view* out) const;
    Status get(std::string_view key, std::vector<int64_t>* out, uint64_t most = kMaxArray) const;
    Status get(std::string_view key, std::vector<std::string_view>* out,
               uint64_t most = kMaxArray) const;

    // In the mapped file: see mapped_file.h for what others may do to it.
    const uint8_t* data(const GgufTensor& tensor) const { return file_->data() + tensor.offset; }

  private:
    GgufFile() = default;
    Status read_header();
    Status parse(GgufCursor& cursor);
    Status parse_keys(GgufCursor& cursor, uint64_t key_count);
    Status parse_tensors(GgufCursor& cursor, uint64_t tensor_count);
    void settle_type_42(uint64_t data_start, uint64_t mask);
    Status place_tensors(uint64_t header_end);
    Status find_value(std::string_view key, const GgufValue** out) const;
    Status find_array(std::string_view key, uint64_t most, const GgufValue** out) const;
    Status value_error(std::string_view key, const std::string& what) const;
    Status type_error(std::string_view key, const char* expected, const GgufValue& found) const;

    std::unique_ptr<MappedFile> file_;
    std::vector<uint8_t> header_; // a copy; names and values point into it
    std::vector<GgufTensor> tensors_;
    std::vector<std::pair<std::string_view, GgufValue>> keys_;
    // Ordered: names cannot be chosen so that a lookup takes long, as they can with a hash.
    std::map<std::string_view, size_t> tensor_index_;
    std::map<std::string_view, size_t> key_index_;
};

const char* gguf_type_name(GgufType type);
// Bytes of one value of a fixed size; 0 for strings, arrays and unknown types.
uint64_t gguf_value_bytes(uint32_t type);

// Name, block and bytes of any published tensor type, also those that this engine does not run;
// false when unknown.
bool gguf_tensor_type(uint32_t id, const char** name, uint32_t* block, uint32_t* bytes);

} // namespace bonsai
