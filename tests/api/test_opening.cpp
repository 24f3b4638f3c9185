// SPDX-License-Identifier: Apache-2.0
// Model files that lack something, hold too much or lie: what bonsai_open makes of them.
#include "api/api_test.h"

using namespace api_test;

// What opening a file of these bytes answers.
static bonsai_status opens(const std::string& bytes) {
    const test::TempFile file(bytes);
    bonsai_context* ctx = nullptr;
    const bonsai_status status = bonsai_open(file.path().c_str(), nullptr, &ctx);
    bonsai_close(ctx);
    return status;
}

TEST(missing_extra_and_misshaped_tensors_are_named) {
    const char* left_out = "dit.transformer_blocks.0.attn.to_k.weight";
    const auto others = [&](const std::string& name) { return name != left_out; };
    CHECK(opens(test::TinyModel(others).file().bytes()) == BONSAI_ERR_FORMAT);
    CHECK(last_error_says(left_out) && last_error_says("missing"));
    CHECK(opens(test::TinyModel().file().tensor("dit.surplus.weight", 0, {1}, "abcd").bytes()) ==
          BONSAI_ERR_FORMAT);
    CHECK(last_error_says("dit.surplus.weight"));
    for (const char* stray : {"vae.stray.weight", "unet.weight"}) {
        CHECK(opens(test::TinyModel().file().tensor(stray, 0, {1}, "abcd").bytes()) ==
              BONSAI_ERR_FORMAT);
        CHECK(last_error_says(stray));
    }
    CHECK(opens(test::TinyModel().file().tensor("vae.encoder.x", 0, {1}, "abcd").bytes()) ==
          BONSAI_OK);
    test::TinyModel misshaped(others);
    misshaped.file().tensor(left_out, 0, {128, 2}, std::string(1024, '\0'));
    CHECK(opens(misshaped.file().bytes()) == BONSAI_ERR_FORMAT &&
          last_error_says("is 2 x 128, expected 128 x 128"));
    test::TinyModel foreign(others);
    foreign.file().tensor(left_out, 35, {256, 64}, std::string(66 * 64, '\0'));
    CHECK(opens(foreign.file().bytes()) == BONSAI_ERR_UNSUPPORTED && last_error_says("TQ2_0"));
}

// The file with another 32-bit value for a key.
template <typename T> static std::string patched(const char* key, T value) {
    std::string bytes = test::TinyModel().file().bytes();
    const size_t at = bytes.find(key) + std::strlen(key) + 4; // behind the type
    std::memcpy(&bytes[at], &value, 4);
    return bytes;
}

TEST(impossible_values_are_refused_when_opened) {
    const struct {
        std::string bytes;
        const char* message;
    } cases[] = {
        {patched("bonsai.vae.latent_channels", 1u), "latent_channels is 1, expected 4"},
        {patched("bonsai.default.width", 65536u), "width is 65536, expected 16 to 16384"},
        {patched("bonsai.te.norm_eps", 0.0f), "cannot be computed: rms_norm: eps 0"},
        {patched("bonsai.te.max_tokens", 0u), "max_tokens is 0"},
        {patched("bonsai.dit.heads", 3u), "expected 192 x 32"},
        {patched("bonsai.vae.norm_groups", 7u), "not a multiple of norm_groups"},
    };
    for (const auto& c : cases) {
        CHECK(opens(c.bytes) == BONSAI_ERR_FORMAT);
        CHECK(last_error_says(c.message));
    }
}

// A picture of 16 x 16 if the plan says that it takes little memory.
static void draw_if_small(bonsai_context* ctx) {
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    if (bonsai_plan_memory(ctx, 16, 16, &plan) != BONSAI_OK || plan.peak >= 50000000) return;
    bonsai_generate_params params = request("x", 0);
    params.width = params.height = 16;
    params.steps = 1;
    bonsai_image image;
    if (bonsai_generate(ctx, &params, &image) == BONSAI_OK) CHECK(image.width == 16);
    bonsai_image_free(&image);
}

// Numbers that no converter writes: an error or a small picture, never a crash.
TEST(every_number_may_lie) {
    const char* const keys[] = {"te.vocab_size",       "te.width",
                                "te.layers",           "te.heads",
                                "te.kv_heads",         "te.head_dim",
                                "te.ffn_width",        "te.max_tokens",
                                "dit.double_blocks",   "dit.single_blocks",
                                "dit.heads",           "dit.head_dim",
                                "dit.in_channels",     "dit.context_width",
                                "dit.mlp_width",       "dit.time_channels",
                                "vae.latent_channels", "vae.layers_per_block",
                                "vae.norm_groups",     "schedule.train_steps",
                                "default.width",       "default.steps",
                                "te.norm_eps",         "dit.rope_theta",
                                "vae.bn_eps",          "schedule.shift",
                                "format_version"};
    int opened = 0;
    for (const char* key : keys) {
        for (const uint32_t value : {0u, 1u, 2u, 3u, 24u, 65536u, 0x7fffffffu, 0xffffffffu}) {
            const test::TempFile file(patched((std::string("bonsai.") + key).c_str(), value));
            bonsai_context* ctx = nullptr;
            if (bonsai_open(file.path().c_str(), nullptr, &ctx) != BONSAI_OK) {
                CHECK(ctx == nullptr && last_error_says(file.path().c_str()));
                continue;
            }
            ++opened;
            draw_if_small(ctx);
            bonsai_close(ctx);
        }
    }
    CHECK(opened > 8); // max_tokens, default sizes and steps: some values are merely odd
}
