// SPDX-License-Identifier: Apache-2.0
// A cancelled call ends inside of the op in work, in every stage, and leaves nothing wrong behind.
#include "backends/wrapped.h"
#include "core/gguf.h"
#include "model/pipeline.h"
#include "support/tiny_model.h"
#include "test.h"

using namespace bonsai;

namespace {

struct Counts {
    int ops = 0;   // that have begun
    int at = -1;   // this one is cancelled when it begins
    int ended = 0; // what it answered with
    Pipeline* pipeline = nullptr;
};

// The processor; one of its ops is cancelled.
class Cancelling final : public EachOp<Cancelling> {
  public:
    Cancelling(std::unique_ptr<Backend> inner, Counts& counts)
        : EachOp(std::move(inner)), counts_(counts) {}
    template <typename Args> Status op(const char*, const Args& args, Op<Args> run) {
        const bool now = counts_.ops++ == counts_.at;
        if (now) counts_.pipeline->cancel();
        const Status status = (inner().*run)(args);
        counts_.ended += now && status.code() == ErrorCode::kCancelled;
        return status;
    }

  private:
    Counts& counts_;
};

} // namespace

TEST(an_op_in_work_ends_and_the_next_picture_is_right) {
    const test::TempFile file(test::TinyModel().file().bytes());
    for (const int threads : {1, 3}) {
        Counts counts;
        std::unique_ptr<GgufFile> model;
        std::unique_ptr<Backend> cpu;
        std::unique_ptr<Pipeline> pipeline;
        CHECK_OK(GgufFile::open(file.path(), &model));
        CHECK_OK(create_backend("cpu", {threads, Precision::kFast}, &cpu));
        auto device = std::make_unique<Cancelling>(std::move(cpu), counts);
        CHECK_OK(Pipeline::open(std::move(model), std::move(device), {}, &pipeline));
        counts.pipeline = pipeline.get();

        Request request;
        request.prompt = "a tree";
        request.width = request.height = 32;
        request.steps = 2;
        std::vector<Picture> right, drawn;
        CHECK_OK(pipeline->generate(request, &right));
        const int all = counts.ops;
        int inside = 0;
        for (int at = 0; at < all; at += 3) {
            counts.ops = 0, counts.at = at, counts.ended = 0;
            pipeline->clear_cancel();
            request.prompt = "a tree" + std::to_string(at); // so that the encoder works each time
            CHECK_FAILS(pipeline->generate(request, &drawn), ErrorCode::kCancelled, "cancelled");
            CHECK(counts.ended == 0 || counts.ops == at + 1);
            inside += counts.ended;
        }
        CHECK(inside > all / 6); // ops that one thread does without a loop run to their end
        counts.at = -1;
        pipeline->clear_cancel();
        request.prompt = "a tree";
        CHECK_OK(pipeline->generate(request, &drawn));
        CHECK(drawn[0].rgb == right[0].rgb);
    }
}
