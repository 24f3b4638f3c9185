// SPDX-License-Identifier: Apache-2.0
#include "model/embeds.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/describe.h"
#include "core/file_output.h"
#include "core/gguf.h"
#include "core/gguf_builder.h"
#include "core/sha256.h"
#include "model/tokenizer.h"

namespace bonsai {

namespace {

constexpr const char* kArchitecture = "bonsai-embeds";
constexpr const char* kTensor = "prompt_embeds";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kTypeF32 = 0;

// That the file holds prompt embeddings at all, and those of this model.
Status check_origin(const GgufFile& file, const EmbedsShape& shape) {
    const char* path = file.file().path().c_str();
    std::string_view architecture, hash;
    int64_t version = 0;
    BONSAI_TRY(file.get("general.architecture", &architecture));
    if (architecture != kArchitecture)
        return fail(ErrorCode::kFormat,
                    "%s: holds %s, expected prompt embeddings (%s); save some with --save-embeds",
                    path, quoted(architecture, 64).c_str(), kArchitecture);
    BONSAI_TRY(file.get("bonsai.embeds.version", &version));
    if (version != kVersion)
        return fail(ErrorCode::kUnsupported,
                    "%s: prompt embeddings of version %lld, expected %u; save them again", path,
                    static_cast<long long>(version), kVersion);
    BONSAI_TRY(file.get("bonsai.embeds.model_hash", &hash));
    if (hash != shape.model_hash)
        return fail(ErrorCode::kFormat,
                    "%s: prompt embeddings of another model (hash %s, this one has %s); save them "
                    "again with this model",
                    path, quoted(hash, 64).c_str(), shape.model_hash.c_str());
    return Status();
}

Status read_prompt(const GgufFile& file, const EmbedsShape& shape, Prompt* out) {
    const char* path = file.file().path().c_str();
    std::string_view text;
    int64_t tokens = 0;
    BONSAI_TRY(file.get("bonsai.embeds.prompt", &text));
    const Status status = Tokenizer::check_text(text);
    if (!status.ok()) return fail(ErrorCode::kFormat, "%s: %s", path, status.message().c_str());
    if (text.find('\0') != std::string_view::npos)
        return fail(ErrorCode::kFormat, "%s: prompt with a zero byte, expected text", path);
    BONSAI_TRY(file.get("bonsai.embeds.tokens", &tokens));
    if (tokens < 1 || tokens > shape.tokens)
        return fail(ErrorCode::kFormat, "%s: bonsai.embeds.tokens is %lld, expected 1 to %lld",
                    path, static_cast<long long>(tokens), static_cast<long long>(shape.tokens));
    BONSAI_TRY(file.get("bonsai.embeds.truncated", &out->truncated));
    out->text = text;
    out->tokens = static_cast<int32_t>(tokens);
    return Status();
}

Status read_rows(const GgufFile& file, const EmbedsShape& shape, Prompt* out) {
    const char* path = file.file().path().c_str();
    const GgufTensor* tensor = file.find(kTensor);
    if (!tensor || file.tensors().size() != 1)
        return fail(ErrorCode::kFormat, "%s: %zu tensors, expected one, %s", path,
                    file.tensors().size(), kTensor);
    if (tensor->type_id != kTypeF32 || tensor->dims != 2 ||
        tensor->ne[0] != static_cast<uint64_t>(shape.width) ||
        tensor->ne[1] != static_cast<uint64_t>(shape.tokens))
        return fail(ErrorCode::kFormat,
                    "%s: %s has type %u and %llu x %llu values, expected type 0 (F32) and "
                    "%lld x %lld",
                    path, kTensor, tensor->type_id, static_cast<unsigned long long>(tensor->ne[1]),
                    static_cast<unsigned long long>(tensor->ne[0]),
                    static_cast<long long>(shape.tokens), static_cast<long long>(shape.width));
    BONSAI_TRY(verify_hashes(file, [](double, std::string_view) { return Status(); }));
    out->rows.resize(static_cast<size_t>(shape.tokens * shape.width));
    std::memcpy(out->rows.data(), file.data(*tensor), out->rows.size() * sizeof(float));
    BONSAI_TRY(file.file().check());
    const auto bad = std::find_if(out->rows.begin(), out->rows.end(),
                                  [](float value) { return !std::isfinite(value); });
    if (bad != out->rows.end())
        return fail(ErrorCode::kFormat, "%s: value %lld of %s is not a number; save them again",
                    path, static_cast<long long>(bad - out->rows.begin()), kTensor);
    return Status();
}

} // namespace

Status write_embeds(const std::string& path, const EmbedsShape& shape, const Prompt& prompt) {
    const std::string data(reinterpret_cast<const char*>(prompt.rows.data()),
                           prompt.rows.size() * sizeof(float));
    Sha256 sha;
    sha.update(data.data(), data.size());
    GgufBuilder file;
    file.text("general.architecture", kArchitecture)
        .u32("bonsai.embeds.version", kVersion)
        .text("bonsai.embeds.model_hash", shape.model_hash)
        .text("bonsai.embeds.prompt", prompt.text)
        .u32("bonsai.embeds.tokens", static_cast<uint32_t>(prompt.tokens))
        .boolean("bonsai.embeds.truncated", prompt.truncated)
        .text_array("bonsai.tensor_sha256", {sha.hex()})
        .tensor(kTensor, kTypeF32,
                {static_cast<uint64_t>(shape.width), static_cast<uint64_t>(shape.tokens)}, data);
    const std::string bytes = file.bytes();
    return write_file(path, bytes.data(), bytes.size());
}

Status read_embeds(const std::string& path, const EmbedsShape& shape, Prompt* out) {
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(path, &file));
    BONSAI_TRY(check_origin(*file, shape));
    BONSAI_TRY(read_prompt(*file, shape, out));
    return read_rows(*file, shape, out);
}

} // namespace bonsai
