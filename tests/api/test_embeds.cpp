// SPDX-License-Identifier: Apache-2.0
// Encoded prompts as files: what is loaded stands in for the text encoder, and nothing else than an
// undamaged file of this very model is loaded.
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>

#include "api/api_test.h"
#include "core/sha256.h"

using namespace api_test;

namespace {

constexpr uint64_t kTokens = 24, kWidth = 128; // of the tiny model

std::string draw(bonsai_context* ctx, const char* prompt) {
    return api_test::draw(ctx, request(prompt, 5));
}

std::string load(bonsai_context* ctx, const std::string& path) {
    char* prompt = nullptr;
    CHECK(bonsai_embeds_load(ctx, path.c_str(), &prompt) == BONSAI_OK);
    const std::string text = prompt ? prompt : "";
    bonsai_free(prompt);
    return text;
}

std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

std::string floats(const std::vector<float>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

// A good file by default; each member may be made wrong.
struct Parts {
    std::string architecture = "bonsai-embeds", hash, prompt = "a tree", tensor = "prompt_embeds";
    uint32_t version = 1, tokens = 8;
    uint64_t rows = kTokens, cols = kWidth;
    std::vector<float> values = std::vector<float>(kTokens * kWidth, 0.5f);
    bool wrong_sha = false, second = false;

    std::string bytes() const {
        bonsai::Sha256 sha;
        const std::string data = floats(values);
        sha.update(data.data(), wrong_sha ? data.size() - 1 : data.size());
        const std::string hex = sha.hex();
        test::GgufBuilder file;
        file.text("general.architecture", architecture)
            .u32("bonsai.embeds.version", version)
            .text("bonsai.embeds.model_hash", hash)
            .text("bonsai.embeds.prompt", prompt)
            .u32("bonsai.embeds.tokens", tokens)
            .boolean("bonsai.embeds.truncated", false);
        file.text_array("bonsai.tensor_sha256", second ? std::vector<std::string>{hex, hex}
                                                       : std::vector<std::string>{hex});
        file.tensor(tensor, 0, {cols, rows}, data);
        if (second) file.tensor("more", 0, {cols, rows}, data);
        return file.bytes();
    }
};

void refused(const Context& c, const std::string& bytes, const char* words) {
    const test::TempFile file(bytes);
    char* prompt = nullptr;
    const bonsai_status status = bonsai_embeds_load(c.ctx, file.path().c_str(), &prompt);
    CHECK(status == BONSAI_ERR_FORMAT || status == BONSAI_ERR_UNSUPPORTED);
    CHECK(prompt == nullptr);
    if (!std::strstr(bonsai_last_error(), words))
        test::failed(__FILE__, __LINE__, std::string(words) + ": " + bonsai_last_error());
}

} // namespace

TEST(a_loaded_prompt_draws_the_same_picture_without_the_encoder) {
    const test::TempFile file("");
    const Context first, second;
    CHECK(bonsai_embeds_save(first.ctx, "ein B\xC3\xA4r", file.path().c_str()) == BONSAI_OK);
    CHECK(load(second.ctx, file.path()) == "ein B\xC3\xA4r");
    CHECK(draw(second.ctx, "ein B\xC3\xA4r") == draw(first.ctx, "ein B\xC3\xA4r"));

    // The rows of one prompt under the text of another: they are what counts.
    Parts parts;
    parts.hash = first.info().hash;
    parts.prompt = "else";
    CHECK(bonsai_prompt_encode(first.ctx, "a tree", parts.values.data(), parts.values.size()) ==
          BONSAI_OK);
    const test::TempFile mixed(parts.bytes());
    CHECK(draw(first.ctx, "else") != draw(first.ctx, "a tree"));
    CHECK(load(first.ctx, mixed.path()) == "else"); // in place of what was encoded
    CHECK(draw(first.ctx, "else") == draw(second.ctx, "a tree"));
}

TEST(what_was_loaded_is_saved_again_as_it_was) {
    const Context c;
    Parts parts;
    parts.hash = c.info().hash;
    const test::TempFile from(parts.bytes()), to("");
    CHECK(load(c.ctx, from.path()) == "a tree");
    CHECK(bonsai_embeds_save(c.ctx, "a tree", to.path().c_str()) == BONSAI_OK);
    CHECK(read_file(to.path()) == parts.bytes());
}

TEST(refuses_files_that_are_something_else) {
    const Context c;
    Parts good;
    good.hash = c.info().hash;
    const auto with = [&](auto change) {
        Parts parts = good;
        change(parts);
        return parts.bytes();
    };
    CHECK(load(c.ctx, test::TempFile(good.bytes()).path()) == "a tree");
    refused(c, with([](Parts& p) { p.architecture = "bonsai"; }), "expected prompt embeddings");
    refused(c, with([](Parts& p) { p.version = 2; }), "of version 2, expected 1");
    refused(c, with([](Parts& p) { p.hash[3] ^= 1; }), "of another model");
    refused(c, with([](Parts& p) { p.hash = ""; }), "of another model");
    refused(c, with([](Parts& p) { p.prompt = "\xC3("; }), "invalid UTF-8");
    refused(c, with([](Parts& p) { p.prompt = std::string("a\0b", 3); }), "zero byte");
    refused(c, with([](Parts& p) { p.tokens = 0; }), "tokens is 0, expected 1 to 24");
    refused(c, with([](Parts& p) { p.tokens = 25; }), "tokens is 25, expected 1 to 24");
    refused(c, with([](Parts& p) { p.tensor = "rows"; }), "expected one, prompt_embeds");
    refused(c, with([](Parts& p) { p.second = true; }), "2 tensors, expected one");
    refused(c, with([](Parts& p) { std::swap(p.rows, p.cols); }), "128 x 24 values");
    refused(c, with([](Parts& p) { p.rows = 23; }), "23 x 128 values");
    refused(c, with([](Parts& p) { p.wrong_sha = true; }), "is damaged");
    refused(c, with([](Parts& p) { p.values[7] = std::numeric_limits<float>::infinity(); }),
            "value 7 of prompt_embeds is not a number");
    refused(c, read_file(model_path()), "expected prompt embeddings");
    refused(c, "<html>", "");
    test::GgufBuilder bare;
    refused(c, bare.text("general.architecture", "bonsai-embeds").bytes(), "bonsai.embeds.version");
}

TEST(refuses_every_beginning_of_a_file) {
    const Context c;
    Parts good;
    good.hash = c.info().hash;
    const std::string bytes = good.bytes();
    for (size_t size = 0; size < bytes.size(); size += size < 1024 ? 7 : 1009)
        refused(c, bytes.substr(0, size), "");
}

TEST(refuses_a_model_with_other_weights) {
    test::TinyModel other;
    other.file().text_array("bonsai.tensor_sha256", {"of another tensor"});
    const test::TempFile model(other.file().bytes()), file("");
    const Context c, changed(model.path());
    CHECK(bonsai_embeds_save(c.ctx, "x", file.path().c_str()) == BONSAI_OK);
    refused(changed, read_file(file.path()), "of another model");
}

TEST(a_model_is_not_replaced) {
    const test::TempFile model(read_file(model_path()));
    const Context c(model.path());
    CHECK(bonsai_embeds_save(c.ctx, "x", model.path().c_str()) == BONSAI_ERR_ARGUMENT);
    CHECK(std::strstr(bonsai_last_error(), "is the model itself") != nullptr);
    CHECK(read_file(model.path()) == read_file(model_path()));
}

TEST(wrong_arguments) {
    const Context c;
    char* prompt = nullptr;
    CHECK(bonsai_embeds_save(c.ctx, nullptr, "x") == BONSAI_ERR_ARGUMENT);
    CHECK(bonsai_embeds_save(c.ctx, "x", nullptr) == BONSAI_ERR_ARGUMENT);
    CHECK(bonsai_embeds_save(nullptr, "x", "x") == BONSAI_ERR_ARGUMENT);
    CHECK(bonsai_embeds_load(c.ctx, "x", nullptr) == BONSAI_ERR_ARGUMENT);
    CHECK(bonsai_embeds_load(c.ctx, "/no/such/file", &prompt) == BONSAI_ERR_IO);
    CHECK(bonsai_embeds_save(c.ctx, "x", "/no/such/folder/file") == BONSAI_ERR_IO);
    CHECK(bonsai_embeds_save(c.ctx, "\xFF", "x") == BONSAI_ERR_ARGUMENT);
}
