// SPDX-License-Identifier: Apache-2.0
// Names and sizes of the types that a GGUF file uses.
#include "core/gguf.h"

namespace bonsai {

namespace {

struct TypeName {
    uint32_t id;
    const char* name;
    uint32_t block;
    uint32_t bytes;
};
const TypeName kTensorTypes[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},        {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},     {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},   {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176},  {14, "Q6_K", 256, 210},
    {24, "I8", 1, 1},       {25, "I16", 1, 2},       {26, "I32", 1, 4},
    {27, "I64", 1, 8},      {28, "F64", 1, 8},       {30, "BF16", 1, 2},
    {34, "TQ1_0", 256, 54}, {35, "TQ2_0", 256, 66},  {41, "Q1_0", 128, 18},
    {42, "Q2_0", 64, 18},   {142, "PQ2_0", 128, 34}, {143, "PTQ1_0", 128, 28},
};

} // namespace

const char* gguf_type_name(GgufType type) {
    static const char* const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    const auto i = static_cast<uint32_t>(type);
    return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

uint64_t gguf_value_bytes(uint32_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

bool gguf_tensor_type(uint32_t id, const char** name, uint32_t* block, uint32_t* bytes) {
    for (const TypeName& t : kTensorTypes) {
        if (t.id == id) {
            *name = t.name;
            *block = t.block;
            *bytes = t.bytes;
            return true;
        }
    }
    return false;
}

} // namespace bonsai
