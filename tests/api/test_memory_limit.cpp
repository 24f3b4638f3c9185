// SPDX-License-Identifier: Apache-2.0
// max_memory and the memory plan: too little is an error, little costs time, and the picture stays
// the same.
#ifdef __linux__
#include <sys/resource.h>
#endif

#include "api/api_test.h"

using namespace api_test;

#ifdef __linux__
TEST(a_plan_costs_no_memory) {
    const Context c;
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    CHECK(bonsai_plan_memory(c.ctx, 16384, 16384, &plan) == BONSAI_OK);
    getrusage(RUSAGE_SELF, &after);
    CHECK(plan.transformer_activations > uint64_t(1) << 30);
    CHECK(after.ru_maxrss - before.ru_maxrss < 50000); // kilobytes
}
#endif

TEST(a_limit_below_need_is_an_error_and_a_low_one_makes_strips) {
    const Context tight(2, BONSAI_PRECISION_FAST, 100000);
    bonsai_image image;
    bonsai_generate_params params = request("x", 0);
    CHECK(bonsai_generate(tight.ctx, &params, &image) == BONSAI_ERR_MEMORY &&
          last_error_says("limit"));
    params.width = params.height = 512;
    params.steps = 1;
    bonsai_memory_plan plan;
    plan.struct_size = sizeof plan;
    const Context roomy;
    CHECK(bonsai_plan_memory(roomy.ctx, 512, 512, &plan) == BONSAI_OK && plan.fits &&
          !plan.vae_tiled);
    const Context limited(2, BONSAI_PRECISION_FAST, plan.vae_weights + plan.vae_activations - 1);
    CHECK(bonsai_generate(limited.ctx, &params, &image) == BONSAI_OK);
    CHECK(image.stats.vae_tiled == 1);
    const std::string strips = pixels(image);
    bonsai_image_free(&image);
    CHECK(bonsai_plan_memory(limited.ctx, 512, 512, &plan) == BONSAI_OK && plan.fits &&
          plan.vae_tiled && plan.vae_weights + plan.vae_activations <= plan.limit);
    CHECK(strips == draw(roomy.ctx, params));
}

// Weights that go back block by block are the same weights: only memory and time may differ.
TEST(a_tight_limit_streams_the_weights) {
    const Context roomy;
    bonsai_memory_plan whole, tight;
    whole.struct_size = tight.struct_size = sizeof whole;
    CHECK(bonsai_plan_memory(roomy.ctx, 16, 16, &whole) == BONSAI_OK && whole.fits);
    const uint64_t limit = whole.transformer_weights + whole.transformer_activations - 1;
    const Context limited(2, BONSAI_PRECISION_FAST, limit);
    CHECK(bonsai_plan_memory(limited.ctx, 16, 16, &tight) == BONSAI_OK);
    CHECK(tight.fits && tight.peak <= limit && !tight.vae_tiled);
    CHECK(tight.transformer_weights < whole.transformer_weights);
    bonsai_generate_params params = request("x", 7);
    params.width = params.height = 16;
    CHECK(draw(limited.ctx, params) == draw(roomy.ctx, params));

    const Context narrow(2, BONSAI_PRECISION_FAST,
                         whole.text_encoder_weights + whole.text_encoder_activations - 1);
    CHECK(bonsai_plan_memory(narrow.ctx, 16, 16, &tight) == BONSAI_OK);
    CHECK(tight.text_encoder_weights < whole.text_encoder_weights);
    const bonsai_model_info info = roomy.info();
    std::vector<float> a(static_cast<size_t>(info.max_tokens) * info.prompt_width), b(a.size());
    CHECK(bonsai_prompt_encode(roomy.ctx, "x", a.data(), a.size()) == BONSAI_OK);
    CHECK(bonsai_prompt_encode(narrow.ctx, "x", b.data(), b.size()) == BONSAI_OK);
    CHECK(a == b);
}

TEST(the_plan_of_a_request_is_that_of_its_picture) {
    const Context c;
    bonsai_generate_params params = request(nullptr, 0);
    params.width = 16;
    params.height = 32;
    params.steps = 1000;
    bonsai_memory_plan plan{}, by_size{};
    plan.struct_size = by_size.struct_size = sizeof plan;
    CHECK(bonsai_plan_request(c.ctx, &params, &plan) == BONSAI_OK);
    CHECK(bonsai_plan_memory(c.ctx, 16, 32, &by_size) == BONSAI_OK);
    CHECK(plan.vae_activations == by_size.vae_activations);
    CHECK(plan.transformer_activations > by_size.transformer_activations); // default steps
    params.width = 17;
    CHECK(bonsai_plan_request(c.ctx, &params, &plan) == BONSAI_ERR_ARGUMENT);
    CHECK(bonsai_plan_request(c.ctx, nullptr, &plan) == BONSAI_ERR_ARGUMENT &&
          last_error_says("params is NULL"));
    CHECK(bonsai_plan_request(nullptr, &params, &plan) == BONSAI_ERR_ARGUMENT);
    bonsai_generate_params_init(nullptr); // does nothing
    bonsai_open_params_init(nullptr);
}
