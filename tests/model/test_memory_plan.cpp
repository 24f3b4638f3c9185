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
class Hungry final : public WrappedBackend {
  public:
    Hungry(std::unique_ptr<Backend> inner, uint64_t linear, uint64_t attention, uint64_t conv)
        : WrappedBackend(std::move(inner)), linear_(linear), attention_(attention), conv_(conv) {}
    uint64_t scratch_bytes(const LinearArgs&) const override { return linear_; }
    uint64_t scratch_bytes(const AttentionArgs&) const override { return attention_; }
    uint64_t scratch_bytes(const Conv2dArgs&) const override { return conv_; }

  private:
    uint64_t linear_, attention_, conv_;
};

bonsai_memory_plan plan(uint64_t linear, uint64_t attention, uint64_t conv, uint64_t limit = 0) {
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
    bonsai_memory_plan out{};
    CHECK_OK(pipeline->plan_memory(1024, 1024, &out));
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
