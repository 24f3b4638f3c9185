// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"

namespace bonsai {

namespace {

std::string shape_text(const GgufTensor& tensor) {
    std::string text; // rows first, as everywhere else
    for (int d = tensor.dims - 1; d >= 0; --d)
        text += std::to_string(tensor.ne[d]) + (d ? " x " : "");
    return text;
}

} // namespace

Status WeightLoader::find(const std::string& name, int64_t rows, int64_t cols, DType* dtype,
                          const GgufTensor** out) {
    const char* path = file_.file().path().c_str();
    const GgufTensor* tensor = file_.find(name);
    if (!tensor)
        return fail(ErrorCode::kFormat, "%s: tensor %s is missing; convert the checkpoint again",
                    path, name.c_str());
    if (!dtype_from_gguf(tensor->type_id, dtype)) {
        const char* type = "unknown";
        uint32_t block, bytes;
        gguf_tensor_type(tensor->type_id, &type, &block, &bytes);
        return fail(ErrorCode::kUnsupported,
                    "%s: tensor %s has type %u (%s), which this engine does not run; "
                    "bonsai-convert makes files with F32, F16, BF16, Q8_0, "
                    "Q4_0, Q4_1, Q1_0, PQ2_0 and PTQ1_0",
                    path, name.c_str(), tensor->type_id, type);
    }
    // The last dimension (ne[dims - 1]) counts rows, all others fold into columns.
    const int last = tensor->dims - 1;
    const uint64_t found_rows = last == 0 ? 1 : tensor->ne[last];
    if (found_rows != static_cast<uint64_t>(rows) ||
        tensor->elements() / found_rows != static_cast<uint64_t>(cols))
        return fail(ErrorCode::kFormat, "%s: tensor %s is %s, expected %lld x %lld", path,
                    name.c_str(), shape_text(*tensor).c_str(), static_cast<long long>(rows),
                    static_cast<long long>(cols));
    if (tensor->ne[0] % dtype_info(*dtype).block != 0)
        return fail(ErrorCode::kFormat, "%s: tensor %s: rows of %llu do not hold whole blocks",
                    path, name.c_str(), static_cast<unsigned long long>(tensor->ne[0]));
    used_.insert(name);
    *out = tensor;
    return Status();
}

Status WeightLoader::matrix(const std::string& name, int64_t rows, int64_t cols, WeightSet* set,
                            Tensor* out) {
    DType dtype;
    const GgufTensor* tensor = nullptr;
    BONSAI_TRY(find(name, rows, cols, &dtype, &tensor));
    const Tensor host{dtype, rows, cols, cols, const_cast<uint8_t*>(file_.data(*tensor))};
    std::unique_ptr<Buffer> owner;
    BONSAI_TRY(backend_.load_weight(host, &owner, out));
    if (owner) set->owners.push_back(std::move(owner));
    set->matrices.push_back(*out);
    set->bytes += tensor->bytes;
    return Status();
}

Status WeightLoader::host_vector(const std::string& name, int64_t size, std::vector<float>* out) {
    DType dtype;
    const GgufTensor* tensor = nullptr;
    BONSAI_TRY(find(name, 1, size, &dtype, &tensor));
    if (is_block_quantized(dtype))
        return fail(ErrorCode::kFormat, "%s: tensor %s has type %s; vectors are F32, F16 or BF16",
                    file_.file().path().c_str(), name.c_str(), dtype_info(dtype).name);
    out->resize(static_cast<size_t>(size));
    const uint8_t* data = file_.data(*tensor);
    for (size_t i = 0; i < out->size(); ++i) {
        if (dtype == DType::kF32) {
            std::memcpy(&(*out)[i], data + 4 * i, 4);
        } else {
            uint16_t bits;
            std::memcpy(&bits, data + 2 * i, 2);
            (*out)[i] = dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
        }
        if (!std::isfinite((*out)[i]))
            return fail(ErrorCode::kFormat,
                        "%s: tensor %s: entry %zu is not a number; compare the file with its "
                        "hashes (`bonsai-cli verify`) and get or convert it again",
                        file_.file().path().c_str(), name.c_str(), i);
    }
    return Status();
}

Status WeightLoader::vector(const std::string& name, int64_t size, WeightSet* set, Tensor* out) {
    std::vector<float> values;
    BONSAI_TRY(host_vector(name, size, &values));
    std::unique_ptr<Buffer> owner;
    BONSAI_TRY(backend_.allocate(values.size() * sizeof(float), &owner));
    *out = f32_matrix(static_cast<float*>(owner->data()), 1, size);
    BONSAI_TRY(backend_.write(*out, values.data()));
    set->owners.push_back(std::move(owner));
    set->bytes += values.size() * sizeof(float);
    return Status();
}

Status WeightLoader::check_all_used(std::initializer_list<std::string_view> spared) const {
    for (const GgufTensor& tensor : file_.tensors()) {
        const auto covers = [&](std::string_view prefix) {
            return tensor.name.substr(0, prefix.size()) == prefix;
        };
        if (used_.count(std::string(tensor.name)) ||
            std::any_of(spared.begin(), spared.end(), covers))
            continue;
        return fail(ErrorCode::kFormat,
                    "%s: tensor %.*s is not part of the model that the file declares; convert "
                    "the checkpoint again",
                    file_.file().path().c_str(), static_cast<int>(tensor.name.size()),
                    tensor.name.data());
    }
    return Status();
}

} // namespace bonsai
