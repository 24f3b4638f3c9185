// SPDX-License-Identifier: Apache-2.0
// Memory plans count what ops of the device take beside activations, stage by stage.
#include <algorithm>

#include "backends/wrapped.h"
#include "core/gguf.h"
#include "model/pipeline.h"
#include "support/tiny_model.h"
#include "test.h"

using namespace bonsai;

namespace {

constexpr uint64_t kMegabyte = 1000000;

// The processor, whose ops claim to work with much memory.
class Hungry final : public EachOp<Hungry> {
  public:
    Hungry(std::unique_ptr<Backend> inner, uint64_t linear, uint64_t attention, uint64_t conv)
        : EachOp(std::move(inner)), linear_(linear), attention_(attention), conv_(conv) {}
    uint64_t scratch_bytes(const LinearArgs&) const override { return linear_; }
    uint64_t scratch_bytes(const AttentionArgs&) const override { return attention_; }
    uint64_t scratch_bytes(const Conv2dArgs&) const override { return conv_; }
    template <typename Args> Status op(const char*, const Args& args, Op<Args> run) {
        return (inner().*run)(args);
    }

  private:
    uint64_t linear_, attention_, conv_;
};

std::unique_ptr<Pipeline> open(uint64_t linear, uint64_t attention, uint64_t conv, uint64_t limit) {
    const test::TempFile file(test::TinyModel().file().bytes());
    std::unique_ptr<GgufFile> model;
    std::unique_ptr<Backend> cpu;
    std::unique_ptr<Pipeline> pipeline;
    PipelineOptions options;
    options.max_memory = limit;
    CHECK_OK(GgufFile::open(file.path(), &model));
    CHECK_OK(create_backend("cpu", {1, Precision::kFast}, &cpu));
    auto hungry = std::make_unique<Hungry>(std::move(cpu), linear, attention, conv);
    CHECK_OK(Pipeline::open(std::move(model), std::move(hungry), options, &pipeline));
    return pipeline;
}

bonsai_memory_plan plan(uint64_t linear, uint64_t attention, uint64_t conv, uint64_t limit = 0) {
    bonsai_memory_plan out{};
    CHECK_OK(open(linear, attention, conv, limit)->plan_memory(1024, 1024, &out));
    return out;
}

} // namespace

TEST(the_largest_op_of_a_stage_counts) {
    const bonsai_memory_plan none = plan(0, 0, 0);
    const bonsai_memory_plan some = plan(3 * kMegabyte, 5 * kMegabyte, 7 * kMegabyte);
    CHECK(some.text_encoder_activations == none.text_encoder_activations + 5 * kMegabyte);
    CHECK(some.transformer_activations == none.transformer_activations + 5 * kMegabyte);
    CHECK(some.vae_activations == none.vae_activations + 7 * kMegabyte);
    CHECK(some.peak == std::max({some.text_encoder_weights + some.text_encoder_activations,
                                 some.transformer_weights + some.transformer_activations,
                                 some.vae_weights + some.vae_activations}));
}

TEST(the_limit_sees_it) {
    const uint64_t limit = plan(0, 0, 0).peak;
    CHECK(plan(0, 0, 0, limit).fits);
    CHECK(!plan(limit, 0, 0, limit).fits);
    CHECK(!plan(0, 0, 0, limit).vae_tiled && plan(0, 0, limit, limit).vae_tiled);
}

TEST(pictures_that_wait_for_the_last_count) {
    Request request;
    request.prompt = "a tree";
    request.width = request.height = 64;
    request.steps = 1;
    bonsai_memory_plan one{};
    CHECK_OK(open(0, 0, 0, 0)->plan_memory(64, 64, &one));
    const uint64_t limit = one.peak + 2 * 64 * 64 * 3;
    const std::unique_ptr<Pipeline> pipeline = open(0, 0, 0, limit);
    std::vector<Picture> pictures;
    request.images = 3;
    CHECK_OK(pipeline->generate(request, &pictures));
    request.images = 4;
    CHECK_FAILS(pipeline->generate(request, &pictures), ErrorCode::kMemory, "4 pictures of 64x64");
    request.images = 4096;
    CHECK_FAILS(pipeline->generate(request, &pictures), ErrorCode::kMemory, "fewer or smaller");
}

TEST(steps_count) {
    Request request;
    request.width = request.height = 16;
    bonsai_memory_plan plans[2] = {};
    for (const int64_t steps : {1, 1000}) {
        request.steps = steps;
        CHECK_OK(open(0, 0, 0, 0)->plan_memory(request, &plans[steps > 1]));
    }
    CHECK(plans[1].transformer_activations > plans[0].transformer_activations);
    CHECK(plans[1].vae_activations == plans[0].vae_activations);
    request.steps = 1001;
    CHECK_FAILS(open(0, 0, 0, 0)->plan_memory(request, plans), ErrorCode::kArgument, "steps 1001");
}
