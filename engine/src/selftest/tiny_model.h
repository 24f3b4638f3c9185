// SPDX-License-Identifier: Apache-2.0
// A complete model file with random weights, the same everywhere, and every size as small as it can
// be: a picture of 32x32 takes milliseconds. For the self-test, and for tests of behaviour; whether
// pictures are right is what the goldens are for.
#pragma once

#include <functional>

#include "core/dtype.h"
#include "core/gguf_builder.h"
#include "core/status.h"

namespace bonsai {

// Called with each tensor's name before it is added: return false to leave it out.
using TensorFilter = std::function<bool(const std::string& name)>;

// A vocabulary: the 256 bytes in the GPT-2 alphabet, in order.
std::vector<std::string> byte_tokens();

class TinyModel {
  public:
    explicit TinyModel(TensorFilter filter = nullptr);
    // Keys and tensors may still be added.
    GgufBuilder& file() { return file_; }
    const Status& status() const { return status_; } // of packing the weights

  private:
    static constexpr uint64_t kText = 64, kDit = 128, kMlp = 384, kVae = 16;

    void keys();
    void tokenizer();
    void add(const std::string& name, DType dtype, const std::vector<uint64_t>& ne, float mean,
             float spread);
    void matrix(const std::string& name, DType dtype, uint64_t rows, uint64_t cols);
    void gain(const std::string& name, uint64_t size);
    void bias(const std::string& name, uint64_t size);
    void text_encoder();
    void transformer();
    void conv(const std::string& name, uint64_t in, uint64_t out, uint64_t kernel);
    void norm(const std::string& name);
    void res(const std::string& name);
    void vae();

    TensorFilter filter_;
    GgufBuilder file_;
    Status status_;
    uint64_t next_seed_ = 1;
};

} // namespace bonsai
