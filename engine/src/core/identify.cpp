// SPDX-License-Identifier: Apache-2.0
#include "core/identify.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/dtype.h"
#include "core/utf8.h"

namespace bonsai {

namespace {

// Names of the same matrices in the three parts, each unlike anything other models have.
constexpr const char* kBflMark = "double_stream_modulation_img.lin.weight";
constexpr const char* kDiffusersMark = "double_stream_modulation_img.linear.weight";
constexpr const char* kTextMarks[] = {"token_embd.weight", "model.embed_tokens.weight"};
constexpr const char* kNormMarks[] = {"blk.0.attn_q_norm.weight",
                                      "model.layers.0.self_attn.q_norm.weight"};
constexpr const char* kVaeMark = "decoder.conv_in.weight";
// What other programs put before the names of a part.
constexpr const char* kDitPrefixes[] = {"", "model.diffusion_model.", "diffusion_model.",
                                        "transformer."};
constexpr const char* kTextPrefixes[] = {"", "text_encoders.llm.", "text_encoders.qwen3_4b.",
                                         "text_encoder."};
constexpr const char* kVaePrefixes[] = {"", "first_stage_model.", "vae."};
constexpr const char* kUnpacked = "prism-ml/bonsai-image-ternary-4B-unpacked";

template <size_t N, size_t M>
bool has_any(const GgufFile& file, const char* const (&prefixes)[N], const char* const (&names)[M],
             std::string* prefix = nullptr) {
    for (const char* p : prefixes) {
        for (const char* name : names) {
            if (!file.find(std::string(p) + name)) continue;
            if (prefix) *prefix = p;
            return true;
        }
    }
    return false;
}

std::string text_of(const GgufFile& file, const char* key) {
    std::string_view value;
    return file.get(key, &value).ok() ? std::string(value) : std::string();
}

// The path as a shell takes it for one word.
std::string shell_word(const std::string& path) {
    const bool plain = std::all_of(path.begin(), path.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::string_view("._-/+=:,@").find(c) != std::string_view::npos;
    });
    if (plain && !path.empty()) return path;
    std::string out = "'";
    for (const char c : path)
        out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

std::string list_of(const std::set<std::string>& names) {
    std::string out;
    for (const std::string& name : names)
        out += (out.empty() ? "" : ", ") + name;
    return out;
}

std::string type_of(const GgufTensor& tensor) {
    const char* name = nullptr;
    uint32_t block, bytes;
    return gguf_tensor_type(tensor.type_id, &name, &block, &bytes)
               ? name
               : "type " + std::to_string(tensor.type_id);
}

// Blocks of a transformer, by their numbers, and the types of their matrices.
struct Blocks {
    std::set<std::string> doubles, singles, types;

    void add(std::string_view name, const GgufTensor& tensor) {
        for (const auto& [start, numbers] : std::map<std::string_view, std::set<std::string>*>{
                 {"double_blocks.", &doubles},
                 {"transformer_blocks.", &doubles},
                 {"single_blocks.", &singles},
                 {"single_transformer_blocks.", &singles}}) {
            if (name.substr(0, start.size()) != start) continue;
            const std::string_view rest = name.substr(start.size());
            numbers->insert(std::string(rest.substr(0, rest.find('.'))));
            if (tensor.dims == 2) types.insert(type_of(tensor));
        }
    }
};

Blocks blocks_of(const GgufFile& file, const std::string& prefix) {
    Blocks blocks;
    for (const GgufTensor& tensor : file.tensors())
        if (tensor.name.substr(0, prefix.size()) == prefix)
            blocks.add(tensor.name.substr(prefix.size()), tensor);
    return blocks;
}

// A file of bonsai-convert: complete, or which part or type stands in the way.
Identity identify_bonsai(const GgufFile& file) {
    Identity id;
    id.is_bonsai = true;
    const std::string variant = text_of(file, "bonsai.variant");
    id.what = "a bonsai model" + (variant.empty() ? "" : " (" + printable(variant) + ")");
    std::set<std::string> parts, foreign;
    for (const GgufTensor& tensor : file.tensors()) {
        parts.insert(std::string(tensor.name.substr(0, tensor.name.find('.'))));
        DType dtype;
        if (!dtype_from_gguf(tensor.type_id, &dtype)) foreign.insert(type_of(tensor));
    }
    for (const auto& [part, text] : std::map<std::string, const char*>{
             {"dit", "the transformer"}, {"te", "the text encoder"}, {"vae", "the VAE"}})
        if (parts.count(part) == 0) id.missing.emplace_back(text);
    if (!file.has("tokenizer.ggml.tokens")) id.missing.emplace_back("the tokenizer");
    if (!foreign.empty()) id.notes.push_back("does not run here: tensors of " + list_of(foreign));
    id.runnable = id.missing.empty() && foreign.empty();
    if (!id.runnable) id.command = "bonsai-convert CHECKPOINT -o model.gguf";
    return id;
}

void describe_transformer(const GgufFile& file, const std::string& prefix, bool bfl, Identity* id) {
    const Blocks blocks = blocks_of(file, prefix);
    const size_t doubles = blocks.doubles.size(), singles = blocks.singles.size();
    id->what = format("a FLUX.2 transformer in the names of %s, %zu double and %zu single blocks "
                      "(klein 4B has 5 and 20), their matrices %s",
                      bfl ? "BFL and ComfyUI" : "diffusers", doubles, singles,
                      list_of(blocks.types).c_str());
    if (blocks.types.count("Q2_K"))
        id->notes.push_back(
            std::string("Q2_K cannot hold ternary weights: as a stand-in for Bonsai it is some "
                        "22 % off; the exact weights are in ") +
            kUnpacked);
    if (file.find(prefix + "guidance_in.in_layer.weight"))
        id->notes.emplace_back("has a guidance embedding: FLUX.2 dev, which this engine does not "
                               "draw");
}

// One command for any mixture of parts: the file for those it has, a placeholder for the others.
std::string assemble_command(const std::string& path, bool dit, bool text, bool vae,
                             bool tokenizer) {
    const std::string file = shell_word(legible(path));
    std::string out = "bonsai-convert --transformer " + (dit ? file : "TRANSFORMER") +
                      " --text-encoder " + (text ? file : "QWEN3-4B") + " --vae " +
                      (vae ? file : "FLUX2-VAE");
    if (text && !tokenizer) out += " --tokenizer TOKENIZER";
    return out + " -o model.gguf";
}

} // namespace

Identity identify(const GgufFile& file) {
    if (text_of(file, "general.architecture") == "bonsai") return identify_bonsai(file);
    Identity id;
    if (text_of(file, "general.architecture") == "bonsai-embeds") {
        id.what = "an encoded prompt, which bonsai-cli --load-embeds takes, and no model";
        return id;
    }
    std::string prefix;
    const bool bfl = has_any(file, kDitPrefixes, {kBflMark}, &prefix);
    const bool dit = bfl || has_any(file, kDitPrefixes, {kDiffusersMark}, &prefix);
    const bool text =
        has_any(file, kTextPrefixes, kTextMarks) && has_any(file, kTextPrefixes, kNormMarks);
    const bool vae = has_any(file, kVaePrefixes, {kVaeMark});
    const bool tokenizer = file.has("tokenizer.ggml.tokens");
    for (const auto& [key, value] : file.keys()) {
        if (key.substr(0, 15) != "prism.hadamard.") continue;
        id.what = "a model with Hadamard-rotated weights, which neither this engine nor its "
                  "converter computes";
        return id;
    }
    if (!dit && !text && !vae) {
        const std::string architecture = printable(text_of(file, "general.architecture"));
        id.what = architecture.empty()
                      ? "no part of a FLUX.2 model that is known here"
                      : "a '" + architecture + "' model: no part of a FLUX.2 model";
        return id;
    }
    if (dit) describe_transformer(file, prefix, bfl, &id);
    if (text)
        id.what += (id.what.empty() ? "" : "; ") + std::string("a Qwen3 text encoder") +
                   (tokenizer ? " with its tokenizer" : "");
    if (vae) id.what += (id.what.empty() ? "" : "; ") + std::string("a VAE");
    if (!dit) id.missing.emplace_back("a FLUX.2 klein transformer");
    if (!text) id.missing.emplace_back("a Qwen3 text encoder");
    if (!vae) id.missing.emplace_back("a FLUX.2 VAE");
    if (!tokenizer) id.missing.emplace_back("the tokenizer");
    id.command = assemble_command(file.file().path(), dit, text, vae, tokenizer);
    return id;
}

} // namespace bonsai
