// SPDX-License-Identifier: Apache-2.0
// Stands in for bonsai_self_test in bonsai-cli-faulty, a program for the tests: the device under
// test errs in one element of each result of the operation that BONSAI_TEST_FAULT names.
#include <cstdlib>

#include "bonsai.h"
#include "selftest/self_test.h"
#include "support/faulty_backend.h"

extern "C" bonsai_status __wrap_bonsai_self_test(const bonsai_open_params*, int32_t json,
                                                 char** report, int32_t* failures) {
    const char* op = std::getenv("BONSAI_TEST_FAULT");
    bonsai::SelfTestReport found;
    const bonsai::Status status = bonsai::run_self_test(
        [&](bonsai::Precision precision, std::unique_ptr<bonsai::Backend>* out) {
            std::unique_ptr<bonsai::Backend> inner;
            BONSAI_TRY(bonsai::create_backend("auto", {0, precision}, &inner));
            out->reset(
                new test::FaultyBackend(std::move(inner), op ? op : "", test::Fault::kOffByLittle));
            return bonsai::Status();
        },
        &found);
    if (!status.ok()) return static_cast<bonsai_status>(status.code());
    *failures = found.failures();
    const std::string text = json ? bonsai::self_test_json(found) : bonsai::self_test_text(found);
    *report = static_cast<char*>(std::malloc(text.size() + 1));
    std::memcpy(*report, text.c_str(), text.size() + 1);
    return BONSAI_OK;
}
