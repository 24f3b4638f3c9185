// SPDX-License-Identifier: Apache-2.0
// Makes the bytes of GGUF files that fit in memory, also of wrong ones for the tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace bonsai {

class GgufBuilder {
  public:
    GgufBuilder& text(const std::string& key, const std::string& value) {
        return key_value(key, 8, string(value));
    }
    GgufBuilder& u32(const std::string& key, uint32_t value) {
        return key_value(key, 4, raw(value));
    }
    GgufBuilder& f32(const std::string& key, float value) { return key_value(key, 6, raw(value)); }
    GgufBuilder& boolean(const std::string& key, bool value) {
        return key_value(key, 7, raw(static_cast<uint8_t>(value)));
    }
    GgufBuilder& u32_array(const std::string& key, const std::vector<uint32_t>& values) {
        std::string bytes = raw(uint32_t(4)) + raw(static_cast<uint64_t>(values.size()));
        for (const uint32_t value : values)
            bytes += raw(value);
        return key_value(key, 9, bytes);
    }
    GgufBuilder& text_array(const std::string& key, const std::vector<std::string>& values) {
        std::string bytes = raw(uint32_t(8)) + raw(static_cast<uint64_t>(values.size()));
        for (const std::string& value : values)
            bytes += string(value);
        return key_value(key, 9, bytes);
    }
    // A number of any type: its id in the file and its value.
    template <typename T> GgufBuilder& number(const std::string& key, uint32_t type, T value) {
        return key_value(key, type, raw(value));
    }
    // ne[0] is the contiguous dimension.
    GgufBuilder& tensor(const std::string& name, uint32_t type, const std::vector<uint64_t>& ne,
                        const std::string& data) {
        tensors_.push_back({name, type, ne, data_.size()});
        data_ += data;
        data_.resize((data_.size() + 31) / 32 * 32, '\0');
        return *this;
    }
    // Makes tensor i claim another offset.
    GgufBuilder& offset(size_t i, uint64_t value) {
        tensors_[i].offset = value;
        return *this;
    }
    std::string bytes() const {
        std::string out = "GGUF" + raw(uint32_t(3)) + raw(static_cast<uint64_t>(tensors_.size())) +
                          raw(key_count_) + keys_;
        for (const Tensor& t : tensors_) {
            out += string(t.name) + raw(static_cast<uint32_t>(t.ne.size()));
            for (const uint64_t ne : t.ne)
                out += raw(ne);
            out += raw(t.type) + raw(t.offset);
        }
        out.resize((out.size() + 31) / 32 * 32, '\0');
        return out + data_;
    }

  private:
    struct Tensor {
        std::string name;
        uint32_t type;
        std::vector<uint64_t> ne;
        uint64_t offset;
    };
    template <typename T> static std::string raw(T value) {
        std::string out(sizeof value, '\0');
        std::memcpy(&out[0], &value, sizeof value);
        return out;
    }
    static std::string string(const std::string& text) {
        return raw(static_cast<uint64_t>(text.size())) + text;
    }
    GgufBuilder& key_value(const std::string& key, uint32_t type, const std::string& value) {
        keys_ += string(key) + raw(type) + value;
        ++key_count_;
        return *this;
    }

    std::string keys_, data_;
    uint64_t key_count_ = 0;
    std::vector<Tensor> tensors_;
};

} // namespace bonsai
