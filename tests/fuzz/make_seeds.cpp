// SPDX-License-Identifier: Apache-2.0
// make_seeds DIR: writes the seeds that no hand writes, into DIR/gguf and DIR/png. A fuzzer reaches
// the depths of the engine only from files that are whole, and finds more, faster, in small ones:
// here is a complete model that draws and has 30 kB.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "core/half.h"
#include "core/png.h"
#include "core/sha256.h"
#include "selftest/tiny_model.h"
#include "support/gguf_builder.h"

namespace {

using test::GgufBuilder;
using Shape = std::vector<uint64_t>; // ne[0] is the contiguous dimension

constexpr uint64_t kWidth = 8;  // the narrowest that the ops take
constexpr uint64_t kVae = 8;    // channels at the lowest resolution of the VAE
constexpr uint64_t kPixels = 2; // and at all higher ones

class SmallestModel {
  public:
    SmallestModel() {
        keys();
        tokenizer();
        text_encoder();
        transformer();
        vae();
    }
    std::string bytes() const { return file_.bytes(); }

  private:
    void keys() {
        file_.text("general.architecture", "bonsai").text("general.name", "seed");
        file_.text("bonsai.variant", "dense").boolean("bonsai.distilled", false);
        for (const auto& [key, value] : std::vector<std::pair<const char*, uint32_t>>{
                 {"format_version", 1},      {"default.width", 16},
                 {"default.height", 16},     {"default.steps", 1},
                 {"te.vocab_size", 264},     {"te.width", kWidth},
                 {"te.layers", 1},           {"te.heads", 1},
                 {"te.kv_heads", 1},         {"te.head_dim", kWidth},
                 {"te.ffn_width", kWidth},   {"te.max_tokens", 16},
                 {"dit.double_blocks", 1},   {"dit.single_blocks", 1},
                 {"dit.heads", 1},           {"dit.head_dim", kWidth},
                 {"dit.in_channels", 16},    {"dit.context_width", kWidth},
                 {"dit.mlp_width", kWidth},  {"dit.time_channels", kWidth},
                 {"vae.latent_channels", 4}, {"vae.layers_per_block", 1},
                 {"vae.norm_groups", 2},     {"schedule.train_steps", 1000}})
            file_.u32(std::string("bonsai.") + key, value);
        for (const auto& [key, value] :
             std::vector<std::pair<const char*, float>>{{"default.guidance", 2.0f},
                                                        {"te.norm_eps", 1e-6f},
                                                        {"dit.norm_eps", 1e-6f},
                                                        {"vae.norm_eps", 1e-6f},
                                                        {"vae.bn_eps", 1e-4f},
                                                        {"te.rope_theta", 1e6f},
                                                        {"dit.rope_theta", 2000},
                                                        {"schedule.shift", 3}})
            file_.f32(std::string("bonsai.") + key, value);
        file_.text("bonsai.prompt.prefix", "<u>").text("bonsai.prompt.suffix", "</u>");
        file_.u32_array("bonsai.te.out_layers", {1}).boolean("bonsai.te.final_norm", true);
        file_.u32_array("bonsai.dit.rope_axes", {2, 2, 2, 2});
        file_.u32_array("bonsai.vae.decoder_widths", {kPixels, kPixels, kPixels, kVae});
        file_.boolean("bonsai.vae.mid_attention", true).boolean("bonsai.schedule.dynamic", true);
        file_.text("bonsai.schedule.type", "exponential");
    }

    void tokenizer() {
        std::vector<std::string> tokens = bonsai::byte_tokens();
        std::vector<uint32_t> types(256, 1);
        tokens.insert(tokens.end(), {"ab", "<pad>", "<u>", "</u>"});
        types.insert(types.end(), {1, 3, 3, 4});
        file_.text_array("tokenizer.ggml.tokens", tokens);
        file_.u32_array("tokenizer.ggml.token_type", types);
        file_.text_array("tokenizer.ggml.merges", {"a b"});
        file_.u32("tokenizer.ggml.padding_token_id", 257);
    }

    void add(const std::string& name, uint32_t type, const Shape& ne, float mean, float spread) {
        uint64_t count = 1;
        for (const uint64_t n : ne)
            count *= n;
        std::normal_distribution<float> normal(mean, spread);
        std::string data;
        for (uint64_t i = 0; i < count; ++i) {
            const float value = normal(random_);
            const uint16_t half = bonsai::f32_to_f16(value);
            data.append(type == 0 ? reinterpret_cast<const char*>(&value)
                                  : reinterpret_cast<const char*>(&half),
                        type == 0 ? 4 : 2);
        }
        file_.tensor(name, type, ne, data);
    }
    void matrix(const std::string& name, uint64_t rows, uint64_t cols) {
        add(name + ".weight", 1, {cols, rows}, 0, 0.3f);
    }
    void gain(const std::string& name, uint64_t size) { add(name + ".weight", 0, {size}, 1, 0.1f); }
    void bias(const std::string& name, uint64_t size) { add(name + ".bias", 0, {size}, 0, 0.1f); }

    void text_encoder() {
        matrix("te.token_embd", 264, kWidth);
        const std::string b = "te.blk.0.";
        for (const char* name : {"attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"})
            gain(b + name, kWidth);
        for (const char* name :
             {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
            matrix(b + name, kWidth, kWidth);
        gain("te.output_norm", kWidth);
    }

    void transformer() {
        matrix("dit.x_embedder", kWidth, 16);
        matrix("dit.context_embedder", kWidth, kWidth);
        matrix("dit.proj_out", 16, kWidth);
        const std::string t = "dit.time_guidance_embed.timestep_embedder.linear_";
        matrix(t + "1", kWidth, kWidth);
        matrix(t + "2", kWidth, kWidth);
        matrix("dit.double_stream_modulation_img.linear", 6 * kWidth, kWidth);
        matrix("dit.double_stream_modulation_txt.linear", 6 * kWidth, kWidth);
        matrix("dit.single_stream_modulation.linear", 3 * kWidth, kWidth);
        matrix("dit.norm_out.linear", 2 * kWidth, kWidth);
        const std::string d = "dit.transformer_blocks.0.",
                          s = "dit.single_transformer_blocks.0.attn.";
        for (const char* name : {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj",
                                 "add_v_proj", "to_add_out"})
            matrix(d + "attn." + name, kWidth, kWidth);
        for (const char* name : {"norm_q", "norm_k", "norm_added_q", "norm_added_k"})
            gain(d + "attn." + name, kWidth);
        for (const char* name : {"ff.", "ff_context."}) {
            matrix(d + name + "linear_in", 2 * kWidth, kWidth);
            matrix(d + name + "linear_out", kWidth, kWidth);
        }
        matrix(s + "to_qkv_mlp_proj", 5 * kWidth, kWidth);
        matrix(s + "to_out", kWidth, 2 * kWidth);
        gain(s + "norm_q", kWidth);
        gain(s + "norm_k", kWidth);
    }

    void conv(const std::string& name, uint64_t in, uint64_t out, uint64_t kernel) {
        add(name + ".weight", 1, {in, kernel, kernel, out}, 0, 0.3f);
        bias(name, out);
    }
    void norm(const std::string& name, uint64_t size) {
        gain(name, size);
        bias(name, size);
    }
    void res(const std::string& name, uint64_t in, uint64_t out) {
        norm(name + ".norm1", in);
        conv(name + ".conv1", in, out, 3);
        norm(name + ".norm2", out);
        conv(name + ".conv2", out, out, 3);
        if (in != out) conv(name + ".conv_shortcut", in, out, 1);
    }

    void vae() {
        const std::string d = "vae.decoder.", a = d + "mid_block.attentions.0.";
        add("vae.bn.running_mean", 0, {16}, 0, 0.1f);
        add("vae.bn.running_var", 0, {16}, 1, 0.01f);
        matrix("vae.post_quant_conv", 4, 4);
        bias("vae.post_quant_conv", 4);
        conv(d + "conv_in", 4, kVae, 3);
        res(d + "mid_block.resnets.0", kVae, kVae);
        res(d + "mid_block.resnets.1", kVae, kVae);
        norm(a + "group_norm", kVae);
        for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) {
            matrix(a + name, kVae, kVae);
            bias(a + name, kVae);
        }
        uint64_t in = kVae;
        for (int i = 0; i < 4; ++i) {
            const std::string up = d + "up_blocks." + std::to_string(i);
            const uint64_t out = i == 0 ? kVae : kPixels;
            res(up + ".resnets.0", in, out);
            res(up + ".resnets.1", out, out);
            if (i < 3) conv(up + ".upsamplers.0.conv", out, out, 3);
            in = out;
        }
        norm(d + "conv_norm_out", in);
        conv(d + "conv_out", in, 3, 3);
    }

    GgufBuilder file_;
    std::mt19937 random_{7};
};

std::string hash_of(const std::string& data) {
    bonsai::Sha256 sha;
    sha.update(data.data(), data.size());
    return sha.hex();
}

// A file of another kind, with hashes and tensor types that the model lacks.
std::string mixed_file() {
    GgufBuilder b;
    const std::string first(24, 'x'), packed(56, 'y'), foreign(144, 'z');
    b.text("general.architecture", "other").u32("answer", 42).f32("half", 0.5f);
    b.boolean("yes", true).u32_array("three", {1, 2, 3}).text_array("words", {"a", "", "tree"});
    b.u32("general.alignment", 16);
    b.text_array("bonsai.tensor_sha256", {hash_of(first), hash_of(packed), hash_of(foreign)});
    b.tensor("t.first", 0, {3, 2}, first);
    b.tensor("t.packed", 143, {128, 2}, packed);
    b.tensor("t.foreign", 12, {256}, foreign);
    return b.bytes();
}

std::string png(const std::string& metadata) {
    const std::vector<uint8_t> rgb(4 * 2 * 3, 200);
    std::vector<uint8_t> out;
    if (!bonsai::encode_png(rgb.data(), 4, 2, metadata, &out).ok()) std::abort();
    return std::string(out.begin(), out.end());
}

std::string metadata() {
    std::string text = bonsai::metadata_line("prompt", "a\nred \\ apple \xe6\xa0\x91");
    text += "seed: 18446744073709551615\nsize: 768x512\nsteps: 4\nguidance: 1.5\nshift: 0\n"
            "sigmas: 1 0.5\nnoise_dtype: bf16\ntimestep_dtype: f32\nprecision: exact\n"
            "model: seed\nmodel_hash: 00\nengine: bonsai\n";
    return text;
}

// A chunk of another type, put behind the 33 bytes of signature and header. The checksum is left to
// the target, which puts it right.
std::string png_with(const std::string& type, const std::string& data) {
    std::string out = png("");
    std::string chunk{0, 0, static_cast<char>(data.size() >> 8), static_cast<char>(data.size())};
    return out.insert(33, chunk + type + data + "0000");
}

void save(const std::filesystem::path& path, const std::string& bytes) {
    std::filesystem::create_directories(path.parent_path());
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::exit(1);
    std::fclose(file);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: make_seeds DIR\n");
        return 2;
    }
    const std::filesystem::path dir = argv[1];
    save(dir / "gguf" / "model", SmallestModel().bytes());
    save(dir / "gguf" / "mixed", mixed_file());
    save(dir / "gguf" / "empty", GgufBuilder().bytes());
    save(dir / "gguf" / "page", "<!DOCTYPE html><html><body>Not found</body></html>");
    save(dir / "png" / "drawn", png(metadata()));
    save(dir / "png" / "plain", png(""));
    const std::string keyword("bonsai\0", 7);
    save(dir / "png" / "latin1", png_with("tEXt", keyword + "prompt: caf\xe9\nseed: 1\n"));
    save(dir / "png" / "language",
         png_with("iTXt", keyword + std::string("\0\0de\0Baum\0", 10) + metadata()));
    // zlib streams of "prompt: x\nseed: 1\n".
    const std::string deflated("\x78\x9c\x2b\x28\xca\xcf\x2d\x28\xb1\x52\xa8\xe0\x2a\x4e\x4d\x4d"
                               "\xb1\x52\x30\xe4\x02\x00\x3e\x5e\x05\xb5",
                               26);
    save(dir / "png" / "deflated", png_with("zTXt", keyword + std::string(1, '\0') + deflated));
    return 0;
}
