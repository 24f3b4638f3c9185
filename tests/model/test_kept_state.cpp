// SPDX-License-Identifier: Apache-2.0
// What a device keeps between pictures (tables, contexts, recorded ops, one buffer for all stages)
// changes no picture. The device here is the processor that claims to be one: it keeps its memory
// and records ops to run them again.
#include <functional>
#include <new>

#include "backends/wrapped.h"
#include "core/gguf.h"
#include "model/pipeline.h"
#include "support/tiny_model.h"
#include "test.h"

using namespace bonsai;

namespace {

struct Tape final : Capture {
    std::vector<std::function<Status()>> ops;
    uint64_t generation = 0;
};

// What the recorder has seen; outlives it.
struct Counts {
    int direct = 0, recorded = 0, replayed = 0; // ops, tapes, tapes
    int allocated = 0, dropped = 0;
    uint64_t generation = 0; // raise it: memory has moved
    int64_t batch = 1;
    bool broken = false;   // recording fails in the middle
    int calls = 0;         // of the device
    int failing = 0;       // the one that fails, from 1 on,
    bool throwing = false; // or throws, as everything may that takes memory
};

class Recorder final : public EachOp<Recorder> {
  public:
    Recorder(std::unique_ptr<Backend> inner, Counts* counts)
        : EachOp(std::move(inner)), device_(WrappedBackend::device()), counts_(*counts) {
        device_.threads = 0; // as devices say
    }
    const DeviceInfo& device() const override { return device_; }
    bool keeps_memory() const override { return true; }
    int64_t batch() const override { return counts_.batch; }
    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override {
        ++counts_.allocated;
        BONSAI_TRY(fault());
        return WrappedBackend::allocate(bytes, out);
    }
    void drop_weight(const Tensor& weight) override {
        ++counts_.dropped;
        WrappedBackend::drop_weight(weight);
    }
    Status write(const Tensor& to, const void* host) override {
        BONSAI_TRY(fault());
        return WrappedBackend::write(to, host);
    }
    Status read(const Tensor& from, void* host) override {
        BONSAI_TRY(fault());
        return WrappedBackend::read(from, host);
    }
    Status read_beside(const Tensor& from, void* host) override {
        BONSAI_TRY(fault());
        return WrappedBackend::read_beside(from, host);
    }
    Status read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) override {
        BONSAI_TRY(fault());
        return WrappedBackend::read_pixels(from, rgb, finite);
    }
    Status copy(const Tensor& from, const Tensor& to) override {
        return queue([this, from, to] { return inner().copy(from, to); });
    }
    Status begin_capture() override {
        tape_ = std::make_unique<Tape>();
        tape_->generation = counts_.generation;
        return Status();
    }
    Status end_capture(std::unique_ptr<Capture>* out) override {
        ++counts_.recorded;
        const std::unique_ptr<Tape> tape = std::move(tape_);
        BONSAI_TRY(fault());
        BONSAI_TRY(replay(*tape));
        *out = std::make_unique<Tape>(*tape);
        return Status();
    }
    Status replay(const Capture& capture) override {
        const auto& tape = static_cast<const Tape&>(capture);
        if (tape.generation != counts_.generation)
            return fail(ErrorCode::kUnsupported, "memory has moved");
        ++counts_.replayed;
        for (const auto& op : tape.ops)
            BONSAI_TRY(op());
        return Status();
    }

    template <typename Args> Status op(const char*, const Args& args, Op<Args> run) {
        return queue([this, args, run] { return (inner().*run)(args); });
    }

  private:
    Status fault() {
        if (++counts_.calls != counts_.failing) return Status();
        if (counts_.throwing) throw std::bad_alloc();
        return fail(ErrorCode::kMemory, "call %d of the device", counts_.calls);
    }
    Status queue(std::function<Status()> what) {
        BONSAI_TRY(fault());
        if (!tape_) return ++counts_.direct, what();
        if (counts_.broken && tape_->ops.size() > 20)
            return fail(ErrorCode::kInternal, "the tape is full");
        tape_->ops.push_back(std::move(what));
        return Status();
    }

    DeviceInfo device_;
    Counts& counts_;
    std::unique_ptr<Tape> tape_;
};

// The tiny model, which then takes guidance.
std::string undistilled() {
    std::string bytes = test::TinyModel().file().bytes();
    const std::string key = "bonsai.distilled"; // then 4 bytes of type, one of truth
    bytes[bytes.find(key) + key.size() + 4] = 0;
    return bytes;
}

std::unique_ptr<Pipeline> open(Counts* counts, uint64_t max_memory = 0) {
    static const test::TempFile file(undistilled());
    std::unique_ptr<GgufFile> model;
    std::unique_ptr<Backend> device;
    std::unique_ptr<Pipeline> pipeline;
    PipelineOptions options;
    options.max_memory = max_memory;
    CHECK_OK(GgufFile::open(file.path(), &model));
    CHECK_OK(create_backend("cpu", {2, Precision::kFast}, &device));
    if (counts) device = std::make_unique<Recorder>(std::move(device), counts);
    CHECK_OK(Pipeline::open(std::move(model), std::move(device), options, &pipeline));
    return pipeline;
}

Request request(const std::string& prompt, int64_t width, int64_t height, int64_t steps = 3,
                uint64_t seed = 5) {
    Request r;
    r.prompt = prompt;
    r.width = width, r.height = height, r.steps = steps, r.seed = seed;
    return r;
}

// Pixels of all pictures, and the latents and previews of their steps.
std::string draw(Pipeline& pipeline, Request r) {
    std::string out;
    r.on_step = [&](const bonsai_step& step) {
        const size_t count = static_cast<size_t>(step.latent_height) *
                             static_cast<size_t>(step.latent_width * step.latent_channels);
        out.append(reinterpret_cast<const char*>(step.latents), count * sizeof(float));
        if (step.rgb)
            out.append(reinterpret_cast<const char*>(step.rgb),
                       static_cast<size_t>(step.width * step.height * 3));
        return true;
    };
    std::vector<Picture> pictures;
    CHECK_OK(pipeline.generate(r, &pictures));
    for (const Picture& picture : pictures)
        out.append(picture.rgb.begin(), picture.rgb.end());
    return out;
}

} // namespace

TEST(pictures_are_those_of_a_device_that_keeps_nothing) {
    Counts counts;
    const std::unique_ptr<Pipeline> plain = open(nullptr), keeping = open(&counts);
    Request many = request("a tree", 32, 48), seen = request("a tree", 32, 48);
    Request guided = request("a tree", 32, 48);
    many.images = 3;
    guided.guidance = 2;
    seen.preview_every = 1;
    const Request asked[] = {request("a tree", 32, 48),
                             request("a tree", 32, 48),
                             request("a tree", 32, 48, 3, 6),
                             request("a house", 32, 48),
                             request("a house", 48, 32), // as many tokens, other places
                             request("a tree", 32, 48, 4),
                             request("a tree", 64, 64, 1),
                             guided,
                             guided,
                             seen,
                             many,
                             request("a tree", 32, 48)};
    for (const Request& r : asked)
        CHECK(draw(*keeping, r) == draw(*plain, r));
    counts.generation++;
    CHECK(draw(*keeping, asked[0]) == draw(*plain, asked[0]));
}

TEST(the_same_size_again_is_only_replayed) {
    Counts counts;
    const std::unique_ptr<Pipeline> pipeline = open(&counts);
    const std::string first = draw(*pipeline, request("a tree", 32, 48));
    CHECK(counts.recorded == 1 && counts.replayed == 2); // of three steps, the first op by op
    const int dropped = counts.dropped, allocated = counts.allocated;
    CHECK(dropped > 0); // the modulations' weights
    CHECK(draw(*pipeline, request("a tree", 32, 48)) == first);
    draw(*pipeline, request("a house", 32, 48, 3, 7));
    CHECK(counts.recorded == 1 && counts.replayed == 2 + 2 * 3);
    CHECK(counts.dropped == dropped && counts.allocated == allocated);
    counts.generation++; // found out, recorded again
    CHECK(draw(*pipeline, request("a tree", 32, 48)) == first);
    CHECK(counts.recorded == 2 && counts.replayed == 2 + 2 * 3 + 2);
    draw(*pipeline, request("a tree", 32, 64));
    CHECK(counts.recorded == 3);
}

TEST(a_picture_that_was_stopped_leaves_nothing_wrong_behind) {
    Counts counts;
    const std::unique_ptr<Pipeline> pipeline = open(&counts);
    const std::string first = draw(*pipeline, request("a tree", 32, 48));
    for (int calls = 1; calls < 40; calls += 3) {
        Request r = request(calls % 2 ? "a house" : "a tree", 32, calls % 4 ? 48 : 32);
        int left = calls;
        r.on_progress = [&](const bonsai_progress&) { return --left > 0; };
        std::vector<Picture> pictures;
        const Status status = pipeline->generate(r, &pictures);
        CHECK(status.ok() || status.code() == ErrorCode::kCancelled);
        CHECK(draw(*pipeline, request("a tree", 32, 48)) == first);
    }
}

TEST(a_device_that_failed_leaves_nothing_wrong_behind) {
    Counts counts;
    const std::unique_ptr<Pipeline> pipeline = open(&counts);
    const std::string first = draw(*pipeline, request("a tree", 32, 48));
    const Request other = request("a house", 48, 48); // nothing that is kept serves it
    std::vector<Picture> expected;
    CHECK_OK(pipeline->generate(other, &expected));
    const auto failing = [&](int call, bool throwing) { // whether there is such a call
        counts.calls = 0;
        counts.failing = call;
        counts.throwing = throwing;
        std::vector<Picture> pictures;
        try {
            const Status status = pipeline->generate(other, &pictures);
            CHECK(status.ok() || status.code() == ErrorCode::kMemory);
            if (status.ok()) CHECK(pictures[0].rgb == expected[0].rgb);
        } catch (const std::bad_alloc&) {
            CHECK(throwing);
        }
        counts.failing = 0;
        return counts.calls >= call;
    };
    for (int call = 1; failing(call, call % 2 == 0); call += 3)
        CHECK(draw(*pipeline, request("a tree", 32, 48)) == first);
}

TEST(without_room_for_all_stages_have_memory_of_their_own) {
    Counts roomy, tight;
    const std::unique_ptr<Pipeline> all = open(&roomy);
    bonsai_memory_plan plan{};
    CHECK_OK(all->plan_memory(32, 48, &plan));
    const std::unique_ptr<Pipeline> some = open(&tight, plan.peak);
    CHECK(draw(*all, request("a tree", 32, 48)) == draw(*some, request("a tree", 32, 48)));
    roomy.allocated = tight.allocated = 0;
    CHECK(draw(*all, request("a house", 32, 48)) == draw(*some, request("a house", 32, 48)));
    CHECK(roomy.allocated == 0 && tight.allocated == 3);
}

TEST(pictures_drawn_together_are_those_drawn_alone) {
    Counts counts;
    const std::unique_ptr<Pipeline> plain = open(nullptr), together = open(&counts);
    const auto pixels = [](Pipeline& pipeline, Request r) {
        std::vector<Picture> pictures;
        CHECK_OK(pipeline.generate(r, &pictures));
        std::vector<std::vector<uint8_t>> out;
        for (const Picture& picture : pictures)
            out.push_back(picture.rgb);
        return out;
    };
    for (const float guidance : {1.0f, 2.0f}) {
        for (const int64_t images : {2, 5, 3}) { // in batches of 2, 3 + 2 and 3
            counts.batch = images == 2 ? 8 : 3;
            Request r = request("a tree", 32, 64);
            r.images = images;
            r.guidance = guidance;
            const int recorded = counts.recorded;
            const auto all = pixels(*together, r);
            CHECK(counts.recorded > recorded);
            CHECK(all == pixels(*plain, r));
            for (int64_t i = 0; i < images; ++i) {
                Request one = request("a tree", 32, 64, 3, r.seed + static_cast<uint64_t>(i));
                one.guidance = guidance;
                CHECK(pixels(*together, one)[0] == all[static_cast<size_t>(i)]);
            }
        }
    }
}

TEST(callbacks_tell_of_each_picture_of_a_batch) {
    Counts counts;
    counts.batch = 4;
    const std::unique_ptr<Pipeline> pipeline = open(&counts);
    Request r = request("a tree", 32, 64, 2);
    r.images = 3;
    r.preview_every = 2;
    std::string seen;
    std::vector<std::vector<uint8_t>> last(3);
    r.on_step = [&](const bonsai_step& step) {
        seen += std::to_string(step.image) + "." + std::to_string(step.step) + " ";
        CHECK((step.rgb != nullptr) == (step.step == 2));
        if (step.rgb)
            last[static_cast<size_t>(step.image)].assign(step.rgb, step.rgb + 32 * 64 * 3);
        return true;
    };
    int images = 0;
    r.on_progress = [&](const bonsai_progress& progress) {
        CHECK(progress.images == 3 && progress.image < 3 && progress.fraction <= 1);
        images |= 1 << progress.image;
        return true;
    };
    std::vector<Picture> pictures;
    CHECK_OK(pipeline->generate(r, &pictures));
    CHECK(seen == "0.1 1.1 2.1 0.2 1.2 2.2 ");
    CHECK(images == 7 && pictures.size() == 3);
    for (size_t i = 0; i < pictures.size(); ++i) {
        CHECK(pictures[i].rgb == last[i]); // the noise is gone: the preview is the picture
        CHECK(pictures[i].seed == r.seed + i);
        CHECK(pictures[i].stats.denoise_seconds == pictures[0].stats.denoise_seconds);
        CHECK((pictures[i].stats.text_encoder_seconds > 0) == (i == 0));
    }
    r.on_step = [&](const bonsai_step& step) { return step.image != 1; };
    CHECK_FAILS(pipeline->generate(r, &pictures), ErrorCode::kCancelled, "step callback");
}

// Arenas have no byte to spare here.
TEST(recording_that_fails_costs_no_picture) {
    Counts roomy, counts;
    bonsai_memory_plan plan{};
    CHECK_OK(open(&roomy)->plan_memory(32, 48, &plan));
    const uint64_t limit = plan.peak + plan.peak / 8; // stages fit, but not all at once
    const std::unique_ptr<Pipeline> plain = open(nullptr), pipeline = open(&counts, limit);
    counts.broken = true;
    CHECK(draw(*pipeline, request("a tree", 32, 48)) == draw(*plain, request("a tree", 32, 48)));
    CHECK(counts.replayed == 1); // as far as it went
    counts.broken = false;       // the next picture tries again
    CHECK(draw(*pipeline, request("a house", 32, 48)) == draw(*plain, request("a house", 32, 48)));
    CHECK(counts.replayed == 3);
}
