// SPDX-License-Identifier: Apache-2.0
// The self-test passes on every CPU level, and a device that errs in a single place fails exactly
// the checks of the operation concerned.
#include "selftest/self_test.h"

#include <cmath>

#include "backends/cpu/backend.h"
#include "backends/cpu/features.h"
#include "bonsai.h"
#include "support/faulty_backend.h"
#include "test.h"

using namespace bonsai;
using test::Fault;
using test::FaultyBackend;

namespace {

Status make_cpu(cpu::Level level, Precision precision, std::unique_ptr<Backend>* out) {
    return cpu::CpuBackend::create({2, precision}, level, out);
}

SelfTestReport with_fault(const std::string& op, Fault fault) {
    SelfTestReport report;
    CHECK_OK(run_self_test(
        [&](Precision precision, std::unique_ptr<Backend>* out) {
            std::unique_ptr<Backend> inner;
            BONSAI_TRY(
                make_cpu(cpu::levels_of(cpu::detected_features()).back(), precision, &inner));
            out->reset(new FaultyBackend(std::move(inner), op, fault));
            return Status();
        },
        &report));
    return report;
}

bool is_of(const CheckResult& check, const std::string& op) {
    return check.name.compare(0, op.size(), op) == 0;
}

const char* const kOps[] = {"linear",     "rms_norm", "layer_norm", "head_norm_rope",
                            "attention",  "swiglu",   "silu",       "embed_rows",
                            "group_norm", "affine",   "conv2d"};

} // namespace

TEST(every_level_passes) {
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
        SelfTestReport report;
        CHECK_OK(run_self_test(
            [&](Precision precision, std::unique_ptr<Backend>* out) {
                return make_cpu(level, precision, out);
            },
            &report));
        CHECK(report.failures() == 0);
        for (const CheckResult& check : report.checks)
            if (!check.passed) std::printf("%s: %s\n", check.name.c_str(), check.message.c_str());
    }
}

TEST(every_operation_is_checked_and_the_right_one_is_blamed) {
    for (const char* op : kOps) {
        for (const Fault fault : {Fault::kOffByLittle, Fault::kNan, Fault::kUnsupported}) {
            const SelfTestReport report = with_fault(op, fault);
            int concerned = 0;
            for (const CheckResult& check : report.checks) {
                if (is_of(check, "tiny picture")) continue;
                CHECK(check.passed == !is_of(check, op));
                CHECK(check.passed == check.message.empty());
                concerned += is_of(check, op);
            }
            CHECK(concerned > 0 && report.failures() >= concerned);
        }
    }
    CHECK(with_fault("none", Fault::kNone).failures() == 0);
}

TEST(a_wrong_operation_spoils_the_picture) {
    for (const char* op : kOps) {
        if (op == std::string("affine")) continue; // folded into convolutions: no stage runs it
        int wrong = 0;
        for (const CheckResult& check : with_fault(op, Fault::kNan).checks)
            wrong += is_of(check, "tiny picture") && !check.passed;
        CHECK(wrong == 2);
    }
}

TEST(the_known_picture_is_told_from_others) {
    std::vector<float> known, other;
    std::unique_ptr<Backend> backend;
    CHECK_OK(make_cpu(cpu::Level::kGeneric, Precision::kExact, &backend));
    CHECK_OK(draw_known_picture(std::move(backend), kPictureSeed, &known));
    CHECK_OK(make_cpu(cpu::Level::kGeneric, Precision::kExact, &backend));
    CHECK_OK(draw_known_picture(std::move(backend), kPictureSeed + 1, &other));
    float difference = 0;
    for (size_t i = 0; i < known.size(); ++i)
        difference = std::fmax(difference, std::fabs(known[i] - other[i]) / 255);
    CHECK(difference > 0.05f);
    std::vector<CheckResult> results;
    CHECK_OK(make_cpu(cpu::Level::kGeneric, Precision::kExact, &backend));
    check_picture(std::move(backend), Precision::kExact, &results);
    CHECK(results.size() == 1 && results[0].passed && results[0].error < 1e-4);
    if (!results[0].passed || results[0].error >= 1e-4) {
        std::printf("what the reference level draws now, for self_test.cpp:");
        for (size_t i = 0; i < known.size(); ++i)
            std::printf("%s%.2ff,", i % 12 == 0 ? "\n    " : " ", static_cast<double>(known[i]));
        std::printf("\n");
    }
}

TEST(the_c_function_reports_and_counts) {
    char* text = nullptr;
    int32_t failures = -1;
    CHECK(bonsai_self_test(nullptr, 0, &text, &failures) == BONSAI_OK);
    CHECK(failures == 0 && text && std::strstr(text, "linear PTQ1_0 fast"));
    bonsai_free(text);
    CHECK(bonsai_self_test(nullptr, 1, &text, nullptr) == BONSAI_OK);
    CHECK(text && text[0] == '{' && std::strstr(text, "\"failures\": 0"));
    bonsai_free(text);
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.device = "abacus:0";
    CHECK(bonsai_self_test(&params, 0, nullptr, &failures) == BONSAI_ERR_ARGUMENT);
    CHECK(std::strstr(bonsai_last_error(), "abacus:0"));
    params.device = nullptr;
    params.threads = -1;
    CHECK(bonsai_self_test(&params, 0, nullptr, &failures) == BONSAI_ERR_ARGUMENT);
}

TEST(reports_show_what_is_wrong) {
    const SelfTestReport report = with_fault("silu", Fault::kNan);
    const std::string text = self_test_text(report), json = self_test_json(report);
    CHECK(text.find("WRONG") != std::string::npos);
    CHECK(text.find("row 20, column 199 is nan, expected") != std::string::npos);
    CHECK(json.find("\"name\": \"silu\", \"passed\": false, \"error\": null") != std::string::npos);
}
