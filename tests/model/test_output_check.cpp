// SPDX-License-Identifier: Apache-2.0
// Garbage does not leave silently: weights that are no numbers, numbers that grow beyond all
// bounds, and pictures without content end in an error that names the stage and the cause.
#include "bonsai.h"

#include <limits>

#include "core/gguf.h"
#include "support/tiny_model.h"
#include "test.h"

namespace {

using Change = void (*)(uint8_t* data, uint64_t bytes);

// The tiny model with the bytes of one tensor changed.
std::string with_changed(const std::string& tensor, Change change) {
    std::string bytes = test::TinyModel().file().bytes();
    const test::TempFile whole(bytes);
    std::unique_ptr<bonsai::GgufFile> file;
    CHECK_OK(bonsai::GgufFile::open(whole.path(), &file));
    const bonsai::GgufTensor* found = file->find(tensor);
    CHECK(found != nullptr);
    if (found) change(reinterpret_cast<uint8_t*>(&bytes[found->offset]), found->bytes);
    return bytes;
}

void set_half(uint8_t* at, uint16_t bits) {
    std::memcpy(at, &bits, sizeof bits);
}
constexpr uint16_t kHalfNan = 0x7e00, kHalfInfinity = 0x7c00;

struct Outcome {
    bonsai_status status;
    std::string error, warnings;
};

Outcome draw(const std::string& bytes, int precision, int32_t preview_every = 0) {
    const test::TempFile file(bytes);
    Outcome outcome{};
    bonsai_open_params open;
    bonsai_open_params_init(&open);
    open.threads = 2;
    open.precision = precision;
    open.log = [](const char* line, void* user) { *static_cast<std::string*>(user) += line; };
    open.log_user = &outcome.warnings;
    bonsai_context* ctx = nullptr;
    outcome.status = bonsai_open(file.path().c_str(), &open, &ctx);
    if (outcome.status == BONSAI_OK) {
        bonsai_generate_params params;
        bonsai_generate_params_init(&params);
        params.prompt = "a tree";
        params.preview_every = preview_every;
        params.on_step = [](const bonsai_step*, void*) -> int32_t { return 0; };
        bonsai_image image;
        outcome.status = bonsai_generate(ctx, &params, &image);
        bonsai_image_free(&image);
    }
    if (outcome.status != BONSAI_OK) outcome.error = bonsai_last_error();
    bonsai_close(ctx);
    return outcome;
}

bool says(const std::string& text, const std::string& part) {
    if (text.find(part) != std::string::npos) return true;
    std::printf("expected %s in: %s\n", part.c_str(), text.c_str());
    return false;
}

void check_bad_weight(const std::string& tensor, const char* stage, Change change) {
    const std::string bytes = with_changed(tensor, change);
    for (const int precision : {BONSAI_PRECISION_FAST, BONSAI_PRECISION_EXACT}) {
        const Outcome found = draw(bytes, precision);
        CHECK(found.status == BONSAI_ERR_FORMAT);
        CHECK(says(found.error, stage) && says(found.error, "tensor " + tensor + " holds one"));
        CHECK(says(found.error, "bonsai-cli verify"));
    }
}

} // namespace

TEST(a_scale_that_is_no_number_is_named) {
    check_bad_weight("te.blk.1.ffn_down.weight", "the text encoder gave",
                     [](uint8_t* data, uint64_t) { set_half(data, kHalfNan); });
    check_bad_weight("dit.transformer_blocks.0.attn.to_q.weight",
                     "the transformer gave a value that is not a number at step 1 of 2",
                     [](uint8_t* data, uint64_t bytes) { set_half(data + bytes - 2, kHalfNan); });
    check_bad_weight("dit.single_transformer_blocks.0.attn.to_out.weight", "at step 1 of 2",
                     [](uint8_t* data, uint64_t) { set_half(data + 26, kHalfInfinity); });
}

TEST(a_float_that_is_no_number_is_named) {
    check_bad_weight("dit.proj_out.weight", "the transformer gave",
                     [](uint8_t* data, uint64_t) { set_half(data + 10, kHalfNan); });
    check_bad_weight("vae.decoder.up_blocks.3.resnets.1.conv2.weight", "the VAE decoder gave",
                     [](uint8_t* data, uint64_t) { set_half(data, kHalfInfinity); });
}

TEST(a_vector_that_is_no_number_is_named_at_open) {
    const std::string bytes =
        with_changed("te.blk.0.attn_norm.weight", [](uint8_t* data, uint64_t) {
            const float nan = std::numeric_limits<float>::quiet_NaN();
            std::memcpy(data + 4, &nan, sizeof nan);
        });
    const Outcome found = draw(bytes, BONSAI_PRECISION_FAST);
    CHECK(found.status == BONSAI_ERR_FORMAT);
    CHECK(says(found.error, "tensor te.blk.0.attn_norm.weight: entry 1 is not a number"));
}

TEST(numbers_that_grow_too_large_are_told_from_bad_weights) {
    // Finite gains whose products are not.
    const std::string bytes =
        with_changed("vae.decoder.conv_norm_out.weight", [](uint8_t* data, uint64_t size) {
            const float large = std::numeric_limits<float>::max();
            for (uint64_t i = 0; i < size; i += sizeof large)
                std::memcpy(data + i, &large, sizeof large);
        });
    const Outcome found = draw(bytes, BONSAI_PRECISION_EXACT);
    CHECK(found.status == BONSAI_ERR_INTERNAL);
    CHECK(says(found.error, "the VAE decoder gave") && says(found.error, "bonsai-cli doctor"));
}

TEST(a_picture_without_content_is_an_error) {
    const auto zeros = [](uint8_t* data, uint64_t bytes) { std::memset(data, 0, bytes); };
    const Outcome found =
        draw(with_changed("vae.decoder.conv_out.weight", zeros), BONSAI_PRECISION_FAST);
    CHECK(found.status == BONSAI_ERR_INTERNAL);
    CHECK(says(found.error, "the VAE decoder gave the same values for every pixel"));
    CHECK(found.warnings.empty());
}

TEST(a_plain_colour_is_a_picture) {
    // A bias far out of range: after clamping all pixels are white, before it they differ.
    const auto white = [](uint8_t* data, uint64_t bytes) {
        const float bias = 1000;
        for (uint64_t i = 0; i < bytes; i += sizeof bias)
            std::memcpy(data + i, &bias, sizeof bias);
    };
    const std::string bytes = with_changed("vae.decoder.conv_out.bias", white);
    for (const int32_t preview_every : {0, 1}) {
        const Outcome found = draw(bytes, BONSAI_PRECISION_FAST, preview_every);
        CHECK(found.status == BONSAI_OK);
        // Once, for the picture; previews are not judged.
        CHECK(found.warnings.find("one plain colour, #ffffff") == 15);
        CHECK(found.warnings.find("plain", 40) == std::string::npos);
    }
    CHECK(draw(test::TinyModel().file().bytes(), BONSAI_PRECISION_FAST).warnings.empty());
}
