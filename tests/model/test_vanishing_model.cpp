// SPDX-License-Identifier: Apache-2.0
// A model file that is cut or overwritten while a picture is drawn from it, in any stage and while
// it is verified: an error that names the file, on every level and with several threads.
#include "bonsai.h"

#include "support/tiny_model.h"
#include "test.h"

namespace {

bonsai_context* open_model(const test::TempFile& file) {
    bonsai_open_params open;
    bonsai_open_params_init(&open);
    open.threads = 2;
    bonsai_context* ctx = nullptr;
    CHECK(bonsai_open(file.path().c_str(), &open, &ctx) == BONSAI_OK);
    return ctx;
}

bonsai_status draw(bonsai_context* ctx, bonsai_progress_callback on_progress = nullptr,
                   void* user = nullptr) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = "a tree";
    params.on_progress = on_progress;
    params.user = user;
    bonsai_image image;
    const bonsai_status status = bonsai_generate(ctx, &params, &image);
    bonsai_image_free(&image);
    return status;
}

} // namespace

TEST(a_model_that_stays_draws) {
    const test::TempFile file(test::TinyModel().file().bytes());
    bonsai_context* ctx = open_model(file);
    CHECK(draw(ctx) == BONSAI_OK);
    CHECK(draw(ctx) == BONSAI_OK);
    bonsai_close(ctx);
}

#ifndef _WIN32 // which lets nobody cut or delete a mapped file

namespace {

struct Cut {
    std::string path;
    bonsai_stage stage;
    bool done = false;
};

int32_t cut_in_stage(const bonsai_progress* progress, void* user) {
    Cut& cut = *static_cast<Cut*>(user);
    if (!cut.done && progress->stage == cut.stage)
        cut.done = ::truncate(cut.path.c_str(), 4096) == 0;
    return 0;
}

bool error_names(const std::string& path) {
    const std::string error = bonsai_last_error();
    if (error.find(path + ": ") == 0 && error.find("while in use") != std::string::npos)
        return true;
    std::printf("error: %s\n", error.c_str());
    return false;
}

} // namespace

TEST(a_model_cut_in_any_stage_is_an_error) {
    const std::string bytes = test::TinyModel().file().bytes();
    for (const bonsai_stage stage :
         {BONSAI_STAGE_TEXT_ENCODER, BONSAI_STAGE_DENOISE, BONSAI_STAGE_VAE}) {
        const test::TempFile file(bytes);
        bonsai_context* ctx = open_model(file);
        Cut cut{file.path(), stage};
        CHECK(draw(ctx, cut_in_stage, &cut) == BONSAI_ERR_IO);
        CHECK(cut.done && error_names(file.path()));
        CHECK(draw(ctx) == BONSAI_ERR_IO); // and stays one
        CHECK(error_names(file.path()));
        bonsai_close(ctx);
    }
}

TEST(a_model_cut_between_calls_is_an_error) {
    const test::TempFile file(test::TinyModel().file().bytes());
    bonsai_context* ctx = open_model(file);
    CHECK(draw(ctx) == BONSAI_OK);
    CHECK(::truncate(file.path().c_str(), 0) == 0);
    std::vector<float> rows(24 * 128);
    CHECK(bonsai_prompt_encode(ctx, "a tree", rows.data(), rows.size()) == BONSAI_ERR_IO);
    CHECK(error_names(file.path()));
    int32_t ids[8], count = 0;
    CHECK(bonsai_prompt_tokenize(ctx, "a tree", ids, 8, &count) == BONSAI_OK); // needs no weights
    bonsai_close(ctx);
}

TEST(a_model_cut_while_it_is_verified_is_an_error) {
    bonsai::GgufBuilder builder;
    builder.text_array("bonsai.tensor_sha256", {std::string(64, '0'), std::string(64, '0')});
    builder.tensor("a", 0, {1 << 20}, std::string(4 << 20, 'a'));
    builder.tensor("b", 0, {1 << 20}, std::string(4 << 20, 'b'));
    test::TempFile file(builder.bytes());
    const auto cut = [](double, const char*, void* user) -> int32_t {
        return ::truncate(static_cast<test::TempFile*>(user)->path().c_str(), 1000);
    };
    // The first tensor's hash is wrong too; the file comes first where both are known.
    const bonsai_status status = bonsai_file_verify(file.path().c_str(), cut, &file);
    CHECK(status == BONSAI_ERR_IO && error_names(file.path()));
}

TEST(a_deleted_model_still_draws) {
    std::string path;
    bonsai_context* ctx = nullptr;
    {
        const test::TempFile file(test::TinyModel().file().bytes());
        ctx = open_model(file);
    }
    CHECK(draw(ctx) == BONSAI_OK);
    bonsai_close(ctx);
}

#endif
