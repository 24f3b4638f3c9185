// SPDX-License-Identifier: Apache-2.0
#include "core/gguf.h"

#include <algorithm>
#include <cstring>

#include "core/planted.h"
#include "core/utf8.h"

namespace bonsai {

namespace {

// The header of the largest models in use, a vocabulary with its merges, has some 20 MB.
constexpr uint64_t kMaxHeader = 1 << 27;
constexpr uint64_t kFirstRead = 1 << 16; // does for a model without a vocabulary
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 16;
constexpr uint64_t kMaxNameLength = 65535; // of keys and tensors
// Of one dimension and of all elements: a product of four is then checked without overflow.
constexpr uint64_t kMaxDim = uint64_t(1) << 40;
constexpr uint64_t kMaxAlignment = 1 << 16;

constexpr uint32_t kQ2Id = 42, kPq2Id = 142; // see settle_type_42

} // namespace

// Reads little-endian fields one after the other, from the first `loaded` bytes of a file of `size`
// bytes and never beyond.
class GgufCursor {
  public:
    GgufCursor(const std::string& path, const uint8_t* data, uint64_t loaded, uint64_t size)
        : path_(path), data_(data), loaded_(loaded), size_(size) {}

    uint64_t position() const { return at_; }
    const uint8_t* here() const { return data_ + at_; }
    // The failure was not the file's: more of it has to be loaded.
    bool ran_out() const { return ran_out_; }

    template <typename T> Status read(const char* what, T* out) {
        BONSAI_TRY(need(what, sizeof(T)));
        std::memcpy(out, data_ + at_, sizeof(T));
        at_ += sizeof(T);
        return Status();
    }
    Status skip(const char* what, uint64_t bytes) {
        BONSAI_TRY(need(what, bytes));
        at_ += bytes;
        return Status();
    }
    Status string(const char* what, std::string_view* out) {
        uint64_t length = 0;
        BONSAI_TRY(read(what, &length));
        BONSAI_TRY(need(what, length));
        *out = std::string_view(reinterpret_cast<const char*>(data_ + at_),
                                static_cast<size_t>(length));
        at_ += length;
        return Status();
    }

  private:
    Status need(const char* what, uint64_t bytes) {
        if (bytes <= loaded_ - at_ + planted(1)) return Status();
        if (bytes > size_ - at_)
            return fail(ErrorCode::kFormat,
                        "%s: the file ends inside its header: %s at byte %llu needs %llu bytes, "
                        "%llu are left; download or convert it again",
                        path_.c_str(), what, static_cast<unsigned long long>(at_),
                        static_cast<unsigned long long>(bytes),
                        static_cast<unsigned long long>(size_ - at_));
        ran_out_ = true;
        return fail(ErrorCode::kFormat, "%s: its header has more than %llu bytes, the most read",
                    path_.c_str(), static_cast<unsigned long long>(kMaxHeader));
    }

    const std::string& path_;
    const uint8_t* data_;
    uint64_t loaded_, size_;
    uint64_t at_ = 0;
    bool ran_out_ = false;
};

namespace {

// Names end up in messages, on terminals and in C strings.
Status check_name(const std::string& path, const char* what, std::string_view name) {
    if (name.empty() || name.size() > kMaxNameLength)
        return fail(ErrorCode::kFormat, "%s: a %s has a length of %zu, expected 1 to %llu",
                    path.c_str(), what, name.size(),
                    static_cast<unsigned long long>(kMaxNameLength));
    if (!is_plain_text(name))
        return fail(ErrorCode::kFormat, "%s: %s %s contains a control character or is not UTF-8",
                    path.c_str(), what, printable(name).c_str());
    return Status();
}

Status parse_value(GgufCursor& cursor, const std::string& where, GgufValue* value) {
    uint32_t type = 0;
    BONSAI_TRY(cursor.read("value type", &type));
    value->is_array = type == static_cast<uint32_t>(GgufType::kArray);
    if (value->is_array) {
        BONSAI_TRY(cursor.read("array type", &type));
        BONSAI_TRY(cursor.read("array length", &value->count));
    }
    if (value->is_array && type == static_cast<uint32_t>(GgufType::kArray))
        return fail(ErrorCode::kFormat, "%s is an array of arrays, which no model needs",
                    where.c_str());
    const bool is_string = type == static_cast<uint32_t>(GgufType::kString);
    if (!is_string && gguf_value_bytes(type) == 0)
        return fail(
            ErrorCode::kFormat,
            "%s has value type %u, which this engine does not read (known: 0 to 8 and 10 to 12)",
            where.c_str(), type);
    value->type = static_cast<GgufType>(type);
    value->data = cursor.here();
    if (!is_string) {
        if (value->count > UINT64_MAX / 8)
            return fail(ErrorCode::kFormat, "%s claims %llu elements", where.c_str(),
                        static_cast<unsigned long long>(value->count));
        return cursor.skip("value", value->count * gguf_value_bytes(type));
    }
    std::string_view ignored;
    for (uint64_t i = 0; i < value->count; ++i)
        BONSAI_TRY(cursor.string("string", &ignored));
    return Status();
}

Status parse_tensor(GgufCursor& cursor, const std::string& path, GgufTensor* tensor) {
    BONSAI_TRY(cursor.string("tensor name", &tensor->name));
    BONSAI_TRY(check_name(path, "tensor name", tensor->name));
    const std::string name = printable(tensor->name);
    uint32_t dims = 0;
    BONSAI_TRY(cursor.read("dimension count", &dims));
    if (dims < 1 || dims > 4)
        return fail(ErrorCode::kFormat, "%s: tensor %s has %u dimensions, expected 1 to 4",
                    path.c_str(), name.c_str(), dims);
    tensor->dims = static_cast<int>(dims);
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
        BONSAI_TRY(cursor.read("dimension", &tensor->ne[d]));
        const uint64_t ne = tensor->ne[d];
        if (ne == 0 || ne > kMaxDim || elements > kMaxDim / ne)
            return fail(ErrorCode::kFormat,
                        "%s: tensor %s: dimension %u is %llu; the size is not possible",
                        path.c_str(), name.c_str(), d, static_cast<unsigned long long>(ne));
        elements *= ne;
    }
    BONSAI_TRY(cursor.read("tensor type", &tensor->type_id));
    BONSAI_TRY(cursor.read("tensor offset", &tensor->offset));
    const char* type_name = nullptr;
    uint32_t block = 0, bytes = 0;
    if (!gguf_tensor_type(tensor->type_id, &type_name, &block, &bytes)) return Status();
    if (tensor->ne[0] % block != 0)
        return fail(ErrorCode::kFormat,
                    "%s: tensor %s: rows of %llu elements, but %s stores blocks of %u",
                    path.c_str(), name.c_str(), static_cast<unsigned long long>(tensor->ne[0]),
                    type_name, block);
    tensor->bytes = elements / block * bytes;
    return Status();
}

// What came instead of a GGUF file, if that can be told.
const char* what_else(const std::vector<uint8_t>& header) {
    const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
    const size_t first = text.find_first_not_of(" \t\r\n");
    if (first != std::string_view::npos && text[first] == '<')
        return " but a web page (a failed download?)";
    return text.substr(0, 8) == "version " ? " but a git-lfs pointer (run git lfs pull)" : "";
}

} // namespace

Status GgufFile::open(const std::string& path, std::unique_ptr<GgufFile>* out) {
    std::unique_ptr<MappedFile> file;
    BONSAI_TRY(MappedFile::open(path, &file));
    return open(std::move(file), out);
}

Status GgufFile::open(std::unique_ptr<MappedFile> file, std::unique_ptr<GgufFile>* out) {
    std::unique_ptr<GgufFile> gguf(new GgufFile);
    gguf->file_ = std::move(file);
    BONSAI_TRY(gguf->read_header());
    *out = std::move(gguf);
    return Status();
}

// Where the header ends is known only when it has been read: takes a piece of the file that should
// do, and a larger one if it does not.
Status GgufFile::read_header() {
    const uint64_t most = std::min(file_->size(), kMaxHeader);
    for (uint64_t size = std::min(most, kFirstRead);; size = std::min(most, size * 16)) {
        header_.resize(static_cast<size_t>(size));
        BONSAI_TRY(file_->read(0, header_.size(), header_.data()));
        keys_.clear(), key_index_.clear();
        tensors_.clear(), tensor_index_.clear();
        GgufCursor cursor(file_->path(), header_.data(), size, file_->size());
        const Status status = parse(cursor);
        if (status.ok() || !cursor.ran_out() || size == most) return status;
    }
}

Status GgufFile::parse(GgufCursor& cursor) {
    const std::string& path = file_->path();
    if (header_.size() < 24 || std::memcmp(header_.data(), "GGUF", 4) != 0) {
        return fail(ErrorCode::kFormat,
                    "%s: not a GGUF file%s; make one with: bonsai-convert CHECKPOINT -o model.gguf",
                    path.c_str(), what_else(header_));
    }
    uint32_t version = 0;
    uint64_t tensor_count = 0, key_count = 0;
    BONSAI_TRY(cursor.skip("magic", 4));
    BONSAI_TRY(cursor.read("version", &version));
    BONSAI_TRY(cursor.read("tensor count", &tensor_count));
    BONSAI_TRY(cursor.read("key count", &key_count));
    if (version != 3)
        return fail(ErrorCode::kFormat, "%s: GGUF version %u, expected 3%s", path.c_str(), version,
                    version == 0x03000000 ? " (a big-endian file)" : "");
    if (tensor_count > kMaxTensors || key_count > kMaxKeys)
        return fail(ErrorCode::kFormat,
                    "%s: claims %llu tensors and %llu keys; at most %llu of each are read",
                    path.c_str(), static_cast<unsigned long long>(tensor_count),
                    static_cast<unsigned long long>(key_count),
                    static_cast<unsigned long long>(kMaxTensors));
    BONSAI_TRY(parse_keys(cursor, key_count));
    BONSAI_TRY(parse_tensors(cursor, tensor_count));
    return place_tensors(cursor.position());
}

Status GgufFile::parse_keys(GgufCursor& cursor, uint64_t key_count) {
    const std::string& path = file_->path();
    for (uint64_t i = 0; i < key_count; ++i) {
        std::string_view key;
        GgufValue value;
        BONSAI_TRY(cursor.string("key", &key));
        BONSAI_TRY(check_name(path, "key", key));
        BONSAI_TRY(parse_value(cursor, path + ": key " + printable(key), &value));
        if (!key_index_.emplace(key, keys_.size()).second)
            return fail(ErrorCode::kFormat, "%s: key %s stands twice", path.c_str(),
                        printable(key).c_str());
        keys_.emplace_back(key, value);
    }
    return Status();
}

Status GgufFile::parse_tensors(GgufCursor& cursor, uint64_t tensor_count) {
    const std::string& path = file_->path();
    for (uint64_t i = 0; i < tensor_count; ++i) {
        GgufTensor tensor;
        BONSAI_TRY(parse_tensor(cursor, path, &tensor));
        if (!tensor_index_.emplace(tensor.name, tensors_.size()).second)
            return fail(ErrorCode::kFormat, "%s: tensor %s stands twice", path.c_str(),
                        printable(tensor.name).c_str());
        tensors_.push_back(tensor);
    }
    return Status();
}

// Id 42 is Q2_0 with blocks of 64 weights in 18 bytes; a fork first gave that id to its 128 weights
// in 34 bytes, now PQ2_0. The space up to the next tensor tells, and where padding hides the
// difference, the other tensors of the file do.
void GgufFile::settle_type_42(uint64_t data_start, uint64_t mask) {
    const auto pad = [&](uint64_t bytes) { return (bytes + mask) & ~mask; };
    const uint64_t end = file_->size() > data_start ? file_->size() - data_start : 0;
    bool fork = false;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const GgufTensor& t = tensors_[i];
        if (t.type_id != kQ2Id || t.ne[0] % 128 != 0) continue;
        const bool last = i + 1 == tensors_.size();
        const uint64_t next = last ? end : tensors_[i + 1].offset;
        if (next < t.offset) continue;
        const uint64_t space = next - t.offset, blocks = t.elements() / 128 * 34;
        const bool fits = space == pad(blocks) || (last && space == blocks);
        fork = fork || (fits && space < t.bytes);
    }
    if (!fork) return;
    for (GgufTensor& t : tensors_) {
        if (t.type_id != kQ2Id || t.ne[0] % 128 != 0) continue;
        t.type_id = kPq2Id;
        t.bytes = t.elements() / 128 * 34;
    }
}

// Turns offsets into the data, which begins behind the header, into offsets into the file.
Status GgufFile::place_tensors(uint64_t header_end) {
    const std::string& path = file_->path();
    int64_t alignment = 32;
    if (has("general.alignment")) BONSAI_TRY(get("general.alignment", &alignment));
    if (alignment <= 0 || alignment > int64_t(kMaxAlignment) || (alignment & (alignment - 1)) != 0)
        return fail(ErrorCode::kFormat,
                    "%s: general.alignment is %lld, expected a power of two up to %llu",
                    path.c_str(), static_cast<long long>(alignment),
                    static_cast<unsigned long long>(kMaxAlignment));
    const uint64_t mask = static_cast<uint64_t>(alignment) - 1;
    const uint64_t data_start = (header_end + mask) & ~mask;
    settle_type_42(data_start, mask);
    uint64_t expected = 0; // tensors follow each other in order, each padded
    for (GgufTensor& tensor : tensors_) {
        const std::string name = printable(tensor.name);
        if (tensor.offset & mask)
            return fail(ErrorCode::kFormat, "%s: tensor %s starts at %llu, not a multiple of %lld",
                        path.c_str(), name.c_str(), static_cast<unsigned long long>(tensor.offset),
                        static_cast<long long>(alignment));
        if (data_start > file_->size() || tensor.offset > file_->size() - data_start ||
            tensor.bytes > file_->size() - data_start - tensor.offset)
            return fail(ErrorCode::kFormat,
                        "%s: tensor %s needs %llu bytes at %llu, but the file has %llu: it is cut "
                        "off; download or convert it again",
                        path.c_str(), name.c_str(), static_cast<unsigned long long>(tensor.bytes),
                        static_cast<unsigned long long>(data_start + tensor.offset),
                        static_cast<unsigned long long>(file_->size()));
        if (tensor.offset < expected)
            return fail(ErrorCode::kFormat, "%s: tensor %s overlaps the one before it",
                        path.c_str(), name.c_str());
        expected = tensor.offset + tensor.bytes;
        tensor.offset += data_start;
    }
    return Status();
}

const GgufTensor* GgufFile::find(std::string_view name) const {
    const auto it = tensor_index_.find(name);
    return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

} // namespace bonsai
