// SPDX-License-Identifier: Apache-2.0
#include "selftest/self_test.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "model/pipeline.h"
#include "selftest/tiny_model.h"

namespace bonsai {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// The known picture: 64x48 pixels in two steps, as the mean colour of each square of 16x16.
constexpr int64_t kWidth = 64, kHeight = 48, kSquare = 16;
constexpr const char* kPrompt = "a bonsai tree";
// clang-format off
constexpr float kAnswer[] = {
    129.43f, 73.14f, 160.23f, 132.77f, 95.86f, 176.11f, 118.11f, 82.85f, 176.38f, 166.61f, 110.45f, 161.14f,
    171.31f, 83.12f, 186.14f, 167.53f, 76.00f, 126.13f, 152.56f, 69.38f, 164.86f, 195.71f, 163.02f, 154.46f,
    114.98f, 54.28f, 178.23f, 129.27f, 78.89f, 214.66f, 152.04f, 85.64f, 174.14f, 176.56f, 119.32f, 130.54f,
};
// clang-format on
// In parts of full brightness. Rounding, and the int8 activations of the fast mode, move a mean
// by far less; another seed or a wrong operation moves it by more.
constexpr double kPictureAllowed = 0.02;

// Mean of one channel of a square, 0 to 255.
float square_mean(const Picture& picture, int64_t row, int64_t col, int64_t channel) {
    int64_t sum = 0;
    for (int64_t y = row * kSquare; y < (row + 1) * kSquare; ++y)
        for (int64_t x = col * kSquare; x < (col + 1) * kSquare; ++x)
            sum += picture.rgb[static_cast<size_t>(3 * (y * kWidth + x) + channel)];
    return static_cast<float>(sum) / (kSquare * kSquare);
}

} // namespace

Status draw_known_picture(std::unique_ptr<Backend> backend, uint64_t seed,
                          std::vector<float>* means) {
    TinyModel model;
    BONSAI_TRY(model.status());
    const std::string bytes = model.file().bytes();
    std::unique_ptr<MappedFile> memory;
    BONSAI_TRY(
        MappedFile::from_memory("the self-test's model", bytes.data(), bytes.size(), &memory));
    std::unique_ptr<GgufFile> file;
    BONSAI_TRY(GgufFile::open(std::move(memory), &file));
    std::unique_ptr<Pipeline> pipeline;
    BONSAI_TRY(Pipeline::open(std::move(file), std::move(backend), PipelineOptions(), &pipeline));
    Request request;
    request.prompt = kPrompt;
    request.seed = seed;
    request.width = kWidth;
    request.height = kHeight;
    std::vector<Picture> pictures;
    BONSAI_TRY(pipeline->generate(request, &pictures));
    for (int64_t row = 0; row < kHeight / kSquare; ++row)
        for (int64_t col = 0; col < kWidth / kSquare; ++col)
            for (int64_t channel = 0; channel < 3; ++channel)
                means->push_back(square_mean(pictures[0], row, col, channel));
    return Status();
}

int SelfTestReport::failures() const {
    return static_cast<int>(std::count_if(checks.begin(), checks.end(),
                                          [](const CheckResult& c) { return !c.passed; }));
}

void check_picture(std::unique_ptr<Backend> backend, Precision precision,
                   std::vector<CheckResult>* out) {
    CheckResult result;
    result.name = precision == Precision::kFast ? "tiny picture fast" : "tiny picture exact";
    result.allowed = kPictureAllowed;
    const auto start = Clock::now();
    std::vector<float> found;
    const Status status = draw_known_picture(std::move(backend), kPictureSeed, &found);
    result.seconds = since(start);
    if (!status.ok()) {
        result.error = INFINITY;
        result.message = status.message();
    }
    for (size_t i = 0; status.ok() && i < found.size(); ++i) {
        const double error = std::fabs(static_cast<double>(found[i]) - kAnswer[i]) / 255;
        if (error <= result.error) continue;
        result.error = error;
        if (error > kPictureAllowed)
            result.message =
                format("mean %zu of the picture is %.1f, expected %.1f", i, found[i], kAnswer[i]);
    }
    result.passed = result.error <= kPictureAllowed;
    out->push_back(std::move(result));
}

Status run_self_test(const BackendMaker& make, SelfTestReport* out) {
    const auto start = Clock::now();
    for (const Precision precision : {Precision::kExact, Precision::kFast}) {
        std::unique_ptr<Backend> backend;
        BONSAI_TRY(make(precision, &backend));
        out->device = backend->device();
        check_ops(*backend, precision, &out->checks);
        check_picture(std::move(backend), precision, &out->checks);
    }
    out->seconds = since(start);
    return Status();
}

} // namespace bonsai
