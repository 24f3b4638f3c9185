// SPDX-License-Identifier: Apache-2.0
#include "selftest/tiny_model.h"

#include <algorithm>
#include <cmath>

#include "core/quantize.h"
#include "core/rng.h"

namespace bonsai {

TinyModel::TinyModel(TensorFilter filter) : filter_(std::move(filter)) {
    keys();
    tokenizer();
    text_encoder();
    transformer();
    vae();
}

void TinyModel::keys() {
    file_.text("general.architecture", "bonsai")
        .text("general.name", "tiny test model")
        .text("general.license", "none");
    file_.u32("bonsai.format_version", 1)
        .text("bonsai.variant", "ternary")
        .boolean("bonsai.distilled", true);
    file_.u32("bonsai.default.width", 32)
        .u32("bonsai.default.height", 32)
        .u32("bonsai.default.steps", 2);
    file_.f32("bonsai.default.guidance", 1)
        .text("bonsai.prompt.prefix", "<u>")
        .text("bonsai.prompt.suffix", "</u>");
    for (const auto& [key, value] : std::vector<std::pair<const char*, uint32_t>>{
             {"te.vocab_size", 264},     {"te.width", kText},
             {"te.layers", 2},           {"te.heads", 2},
             {"te.kv_heads", 1},         {"te.head_dim", 32},
             {"te.ffn_width", 128},      {"te.max_tokens", 24},
             {"dit.double_blocks", 1},   {"dit.single_blocks", 1},
             {"dit.heads", 2},           {"dit.head_dim", 64},
             {"dit.in_channels", 32},    {"dit.context_width", 2 * kText},
             {"dit.mlp_width", kMlp},    {"dit.time_channels", 32},
             {"vae.latent_channels", 8}, {"vae.layers_per_block", 1},
             {"vae.norm_groups", 8},     {"schedule.train_steps", 1000}})
        file_.u32(std::string("bonsai.") + key, value);
    for (const char* key : {"te.norm_eps", "dit.norm_eps", "vae.norm_eps"})
        file_.f32(std::string("bonsai.") + key, 1e-6f);
    file_.f32("bonsai.vae.bn_eps", 1e-4f)
        .f32("bonsai.te.rope_theta", 1e6f)
        .f32("bonsai.dit.rope_theta", 2000);
    file_.u32_array("bonsai.te.out_layers", {1, 2}).boolean("bonsai.te.final_norm", false);
    file_.u32_array("bonsai.dit.rope_axes", {16, 16, 16, 16})
        .u32_array("bonsai.vae.decoder_widths", {kVae, kVae, kVae, kVae});
    file_.boolean("bonsai.vae.mid_attention", true).boolean("bonsai.schedule.dynamic", true);
    file_.f32("bonsai.schedule.shift", 3).text("bonsai.schedule.type", "exponential");
}

std::vector<std::string> byte_tokens() {
    std::vector<std::string> tokens;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const bool printable =
            (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        const uint32_t point = printable ? byte : next++;
        tokens.push_back(point < 128 ? std::string(1, static_cast<char>(point))
                                     : std::string{static_cast<char>(0xc0 | point >> 6),
                                                   static_cast<char>(0x80 | (point & 63))});
    }
    return tokens;
}

// The bytes, no merges, and the three tokens of the template.
void TinyModel::tokenizer() {
    std::vector<std::string> tokens = byte_tokens();
    std::vector<uint32_t> types(256, 1);
    for (const char* added : {"<pad>", "<u>", "</u>"}) {
        tokens.push_back(added);
        types.push_back(3);
    }
    file_.text_array("tokenizer.ggml.tokens", tokens).u32_array("tokenizer.ggml.token_type", types);
    file_.text_array("tokenizer.ggml.merges", {}).u32("tokenizer.ggml.padding_token_id", 256);
}

void TinyModel::add(const std::string& name, DType dtype, const std::vector<uint64_t>& ne,
                    float mean, float spread) {
    if (filter_ && !filter_(name)) return;
    uint64_t count = 1;
    for (const uint64_t n : ne)
        count *= n;
    std::vector<float> values(std::max<size_t>(16, count)); // the fewest that can be drawn at once
    torch_cpu_randn(next_seed_++, values.data(), values.size());
    for (float& value : values)
        value = mean + spread * value;
    const auto cols = static_cast<int64_t>(ne[0]);
    const auto rows = static_cast<int64_t>(count) / cols;
    std::string packed(static_cast<size_t>(rows) * row_bytes(dtype, cols), '\0');
    const Status status =
        quantize_rows(dtype, values.data(), rows, cols, reinterpret_cast<uint8_t*>(&packed[0]));
    if (!status.ok() && status_.ok()) status_ = status;
    file_.tensor(name, dtype_info(dtype).gguf_id, ne, packed);
}
void TinyModel::matrix(const std::string& name, DType dtype, uint64_t rows, uint64_t cols) {
    add(name + ".weight", dtype, {cols, rows}, 0, 1 / std::sqrt(static_cast<float>(cols)));
}
void TinyModel::gain(const std::string& name, uint64_t size) {
    add(name + ".weight", DType::kF32, {size}, 1, 0.1f);
}
void TinyModel::bias(const std::string& name, uint64_t size) {
    add(name + ".bias", DType::kF32, {size}, 0, 0.1f);
}

void TinyModel::text_encoder() {
    const auto q8 = DType::kQ8_0;
    matrix("te.token_embd", q8, 264, kText);
    for (int i = 0; i < 2; ++i) {
        const std::string name = "te.blk." + std::to_string(i) + ".";
        gain(name + "attn_norm", kText), gain(name + "ffn_norm", kText);
        gain(name + "attn_q_norm", 32), gain(name + "attn_k_norm", 32);
        matrix(name + "attn_q", q8, 64, kText), matrix(name + "attn_k", q8, 32, kText),
            matrix(name + "attn_v", q8, 32, kText);
        matrix(name + "attn_output", q8, kText, 64), matrix(name + "ffn_gate", q8, 128, kText);
        matrix(name + "ffn_up", q8, 128, kText), matrix(name + "ffn_down", q8, kText, 128);
    }
}

void TinyModel::transformer() {
    const auto low = DType::kPTQ1_0, f16 = DType::kF16;
    matrix("dit.x_embedder", f16, kDit, 32), matrix("dit.context_embedder", f16, kDit, 2 * kText),
        matrix("dit.proj_out", f16, 32, kDit);
    matrix("dit.time_guidance_embed.timestep_embedder.linear_1", f16, kDit, 32);
    matrix("dit.time_guidance_embed.timestep_embedder.linear_2", f16, kDit, kDit);
    matrix("dit.double_stream_modulation_img.linear", f16, 6 * kDit, kDit);
    matrix("dit.double_stream_modulation_txt.linear", f16, 6 * kDit, kDit);
    matrix("dit.single_stream_modulation.linear", f16, 3 * kDit, kDit),
        matrix("dit.norm_out.linear", f16, 2 * kDit, kDit);
    const std::string d = "dit.transformer_blocks.0.", s = "dit.single_transformer_blocks.0.attn.";
    for (const char* name : {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj",
                             "add_v_proj", "to_add_out"})
        matrix(d + "attn." + name, low, kDit, kDit);
    for (const char* name : {"norm_q", "norm_k", "norm_added_q", "norm_added_k"})
        gain(d + "attn." + name, 64);
    for (const char* name : {"ff.", "ff_context."}) {
        matrix(d + name + "linear_in", low, 2 * kMlp, kDit);
        matrix(d + name + "linear_out", low, kDit, kMlp);
    }
    matrix(s + "to_qkv_mlp_proj", low, 3 * kDit + 2 * kMlp, kDit),
        matrix(s + "to_out", low, kDit, kDit + kMlp);
    gain(s + "norm_q", 64), gain(s + "norm_k", 64);
}

void TinyModel::conv(const std::string& name, uint64_t in, uint64_t out, uint64_t kernel) {
    add(name + ".weight", DType::kF16, {in, kernel, kernel, out}, 0,
        1 / std::sqrt(static_cast<float>(in * kernel * kernel)));
    bias(name, out);
}
void TinyModel::norm(const std::string& name) {
    gain(name, kVae), bias(name, kVae);
}
void TinyModel::res(const std::string& name) {
    norm(name + ".norm1"), conv(name + ".conv1", kVae, kVae, 3), norm(name + ".norm2"),
        conv(name + ".conv2", kVae, kVae, 3);
}

void TinyModel::vae() {
    const std::string d = "vae.decoder.";
    add("vae.bn.running_mean", DType::kF32, {32}, 0, 0.1f),
        add("vae.bn.running_var", DType::kF32, {32}, 1, 0.01f);
    matrix("vae.post_quant_conv", DType::kF16, 8, 8), bias("vae.post_quant_conv", 8);
    conv(d + "conv_in", 8, kVae, 3), conv(d + "conv_out", kVae, 3, 3), norm(d + "conv_norm_out");
    res(d + "mid_block.resnets.0"), res(d + "mid_block.resnets.1");
    const std::string a = d + "mid_block.attentions.0.";
    norm(a + "group_norm");
    for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"})
        matrix(a + name, DType::kF16, kVae, kVae), bias(a + name, kVae);
    for (int i = 0; i < 4; ++i) {
        const std::string up = d + "up_blocks." + std::to_string(i);
        res(up + ".resnets.0"), res(up + ".resnets.1");
        if (i < 3) conv(up + ".upsamplers.0.conv", kVae, kVae, 3);
    }
}

} // namespace bonsai
