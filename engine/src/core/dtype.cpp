// SPDX-License-Identifier: Apache-2.0
#include "core/dtype.h"

namespace bonsai {

static const DTypeInfo kInfos[kDTypeCount + 1] = {
    {"F32", 0, 1, 4},         {"F16", 1, 1, 2},     {"BF16", 30, 1, 2},    {"Q8_0", 8, 32, 34},
    {"Q4_0", 2, 32, 18},      {"Q4_1", 3, 32, 20},  {"Q1_0", 41, 128, 18}, {"PQ2_0", 142, 128, 34},
    {"PTQ1_0", 143, 128, 28}, {"I8", 24, 128, 128},
};

const DTypeInfo& dtype_info(DType dtype) {
    return kInfos[static_cast<int>(dtype)];
}

bool dtype_from_gguf(uint32_t gguf_id, DType* out) {
    for (int i = 0; i < kDTypeCount; ++i) {
        if (kInfos[i].gguf_id == gguf_id) {
            *out = static_cast<DType>(i);
            return true;
        }
    }
    return false;
}

} // namespace bonsai
