// SPDX-License-Identifier: Apache-2.0
// What files of other programs are taken for, and type 42 in both of its meanings.
#include "core/identify.h"

#include <algorithm>

#include "core/describe.h"
#include "support/gguf_builder.h"
#include "test.h"

using namespace bonsai;
using test::GgufBuilder;
using test::TempFile;

static bool holds(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

// Adds a matrix of 128 x 2 weights.
static void matrix(GgufBuilder* b, const std::string& name, uint32_t type = 1) {
    const size_t bytes = type == 1 ? 512 : type == 41 ? 36 : 68;
    b->tensor(name, type, {128, 2}, std::string(bytes, 'x'));
}

static void transformer(GgufBuilder* b, const std::string& prefix, uint32_t type) {
    matrix(b, prefix + "double_stream_modulation_img.lin.weight");
    for (const char* name : {"double_blocks.0.img_attn.qkv.weight",
                             "double_blocks.1.img_mlp.0.weight", "single_blocks.0.linear1.weight"})
        matrix(b, prefix + name, type);
    b->tensor(prefix + "single_blocks.0.norm.key_norm.scale", 0, {8}, std::string(32, 'n'));
}

static void text_encoder(GgufBuilder* b) {
    b->text("general.architecture", "qwen3");
    matrix(b, "token_embd.weight");
    matrix(b, "blk.0.attn_q_norm.weight");
}

static Identity identity_of(const GgufBuilder& b, std::string* text = nullptr) {
    const TempFile file(b.bytes());
    std::unique_ptr<GgufFile> opened;
    CHECK_OK(GgufFile::open(file.path(), &opened));
    if (!opened) return Identity();
    if (text) *text = describe_text(*opened);
    Identity id = identify(*opened);
    // The path differs from run to run.
    const size_t at = id.command.find(file.path());
    if (at != std::string::npos) id.command.replace(at, file.path().size(), "FILE");
    return id;
}

TEST(transformers_of_others_are_named_with_what_they_lack) {
    for (const char* prefix : {"", "model.diffusion_model.", "diffusion_model.", "transformer."}) {
        GgufBuilder b;
        transformer(&b, prefix, 41);
        std::string text;
        const Identity id = identity_of(b, &text);
        CHECK(!id.runnable);
        CHECK(holds(id.what, "BFL and ComfyUI"));
        CHECK(holds(id.what, "2 double and 1 single blocks"));
        CHECK(holds(id.what, "matrices Q1_0"));
        CHECK(id.missing.size() == 3);
        CHECK(id.command == "bonsai-convert --transformer FILE --text-encoder QWEN3-4B --vae "
                            "FLUX2-VAE -o model.gguf");
        CHECK(
            holds(text, "to draw with it, add: a Qwen3 text encoder, a FLUX.2 VAE, the tokenizer"));
    }
    GgufBuilder b;
    matrix(&b, "double_stream_modulation_img.linear.weight");
    matrix(&b, "transformer_blocks.0.attn.to_q.weight", 142);
    CHECK(holds(identity_of(b).what, "names of diffusers, 1 double and 0 single blocks"));
}

TEST(text_encoders_and_whole_models_are_named) {
    GgufBuilder text;
    text_encoder(&text);
    const Identity id = identity_of(text);
    CHECK(holds(id.what, "a Qwen3 text encoder"));
    CHECK(holds(id.command, "--transformer TRANSFORMER --text-encoder FILE --vae FLUX2-VAE "
                            "--tokenizer TOKENIZER"));
    text.text_array("tokenizer.ggml.tokens", {"a"});
    CHECK(!holds(identity_of(text).command, "--tokenizer"));

    GgufBuilder whole;
    transformer(&whole, "model.diffusion_model.", 41);
    matrix(&whole, "text_encoders.llm.model.embed_tokens.weight");
    matrix(&whole, "text_encoders.llm.model.layers.0.self_attn.q_norm.weight");
    matrix(&whole, "first_stage_model.decoder.conv_in.weight");
    const Identity all = identity_of(whole);
    CHECK(all.missing == std::vector<std::string>{"the tokenizer"});
}

TEST(other_models_are_no_part_of_one) {
    GgufBuilder b;
    b.text("general.architecture", "lla\x1bma");
    matrix(&b, "token_embd.weight");
    std::string text;
    const Identity id = identity_of(b, &text);
    CHECK(holds(id.what, "'lla?ma' model: no part"));
    CHECK(id.command.empty() && !id.runnable);
    CHECK(holds(text, "nothing makes it one"));
    GgufBuilder rotated;
    transformer(&rotated, "", 41);
    rotated.u32("prism.hadamard.size", 128);
    CHECK(holds(identity_of(rotated).what, "Hadamard"));
    CHECK(identity_of(GgufBuilder()).command.empty());
}

TEST(lossy_stand_ins_are_named) {
    GgufBuilder b;
    transformer(&b, "", 41);
    b.tensor("single_blocks.0.linear2.weight", 10, {256}, std::string(84, 'x'));
    CHECK(identity_of(b).notes.empty()); // a vector: no linear
    b.tensor("single_blocks.1.linear2.weight", 10, {256, 1}, std::string(84, 'x'));
    const Identity id = identity_of(b);
    CHECK(id.notes.size() == 1 && holds(id.notes[0], "22 %"));
    CHECK(holds(id.notes[0], "prism-ml/bonsai-image-ternary-4B-unpacked"));
}

TEST(a_model_of_ours_that_lacks_a_part_is_not_ready) {
    GgufBuilder b;
    b.text("general.architecture", "bonsai").text("bonsai.variant", "binary");
    matrix(&b, "dit.a.weight");
    matrix(&b, "vae.a.weight");
    Identity id = identity_of(b);
    CHECK(!id.runnable && holds(id.what, "(binary)"));
    CHECK((id.missing == std::vector<std::string>{"the text encoder", "the tokenizer"}));
    matrix(&b, "te.a.weight");
    b.text_array("tokenizer.ggml.tokens", {"a"});
    CHECK(identity_of(b).runnable);
    b.tensor("dit.b.weight", 10, {256}, std::string(84, 'x'));
    id = identity_of(b);
    CHECK(!id.runnable && id.notes.size() == 1 && holds(id.notes[0], "Q2_K"));
}

TEST(a_file_without_hashes_cannot_be_verified) {
    GgufBuilder b;
    text_encoder(&b);
    const TempFile file(b.bytes());
    std::unique_ptr<GgufFile> opened;
    CHECK_OK(GgufFile::open(file.path(), &opened));
    if (!opened) return;
    const Status status = verify_hashes(*opened, [](double, std::string_view) { return Status(); });
    CHECK(status.code() == ErrorCode::kUnsupported);
    CHECK(holds(status.message(), "Qwen3") && holds(status.message(), "no hashes"));
}

// Tensors of type 42 whose blocks have 18 bytes for 64 weights, or 34 for 128.
static uint32_t settled(uint64_t weights, bool fork, const char* name, bool trimmed = false) {
    GgufBuilder b;
    const uint64_t bytes = fork ? weights / 128 * 34 : weights / 64 * 18;
    b.tensor("large", 42, {weights}, std::string(static_cast<size_t>(bytes), 'x'));
    b.tensor("small", 42, {128}, std::string(fork ? 34 : 36, 'x'));
    b.tensor("odd", 42, {64}, std::string(18, 'x'));
    std::string file_bytes = b.bytes();
    if (trimmed) file_bytes.resize(file_bytes.size() - 14); // the last tensor needs no padding
    const TempFile file(file_bytes);
    std::unique_ptr<GgufFile> opened;
    CHECK_OK(GgufFile::open(file.path(), &opened));
    return opened ? opened->find(name)->type_id : 0;
}

TEST(type_42_is_told_by_its_size) {
    for (const bool trimmed : {false, true}) {
        CHECK(settled(4096, false, "large", trimmed) == 42);
        CHECK(settled(4096, true, "large", trimmed) == 142);
        CHECK(settled(4096, false, "small", trimmed) == 42); // 36 and 34 bytes take 64 both
        CHECK(settled(4096, true, "small", trimmed) == 142);
        CHECK(settled(4096, true, "odd", trimmed) == 42); // half a block of the other
    }
    // The only tensor, with nothing behind it.
    GgufBuilder b;
    b.tensor("last", 42, {2048}, std::string(544, 'x'));
    const TempFile file(b.bytes());
    std::unique_ptr<GgufFile> opened;
    CHECK_OK(GgufFile::open(file.path(), &opened));
    CHECK(opened && opened->tensors()[0].type_id == 142 && opened->tensors()[0].bytes == 544);
}
