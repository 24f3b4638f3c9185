// SPDX-License-Identifier: Apache-2.0
// WeightLoader: hands the tensors of a model file to a backend, each checked for shape and type by
// name. Part of the contract is that a file holds exactly the tensors its configuration calls for.
#pragma once

#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "core/gguf.h"

namespace bonsai {

// The weights of one part of the model.
struct WeightSet {
    std::vector<Tensor> matrices;                // as stored, possibly in the mapped file
    std::vector<std::unique_ptr<Buffer>> owners; // what had to be copied
    uint64_t bytes = 0;
};

// Bytes of matrices as stored.
inline uint64_t stored_bytes(std::initializer_list<Tensor> matrices) {
    uint64_t bytes = 0;
    for (const Tensor& matrix : matrices)
        bytes += static_cast<uint64_t>(matrix.rows) * row_bytes(matrix.dtype, matrix.stride);
    return bytes;
}

class WeightLoader {
  public:
    WeightLoader(const GgufFile& file, Backend& backend) : file_(file), backend_(backend) {}

    // Tensor `name` as [rows, cols] in its stored type; more dimensions in the file are folded into
    // cols.
    Status matrix(const std::string& name, int64_t rows, int64_t cols, WeightSet* set, Tensor* out);
    // Tensor `name` of `size` floats, converted to f32, as [1, size].
    Status vector(const std::string& name, int64_t size, WeightSet* set, Tensor* out);
    // The same into host memory.
    Status host_vector(const std::string& name, int64_t size, std::vector<float>* out);

    // Tensors that nobody asked for are an error, but for those below the `spared` prefixes.
    Status check_all_used(std::initializer_list<std::string_view> spared) const;

  private:
    Status find(const std::string& name, int64_t rows, int64_t cols, DType* dtype,
                const GgufTensor** out);

    const GgufFile& file_;
    Backend& backend_;
    std::set<std::string> used_;
};

} // namespace bonsai
