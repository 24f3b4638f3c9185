// SPDX-License-Identifier: Apache-2.0
// Self-test: does this device compute rightly? Every kind of operation runs on small inputs whose
// results are known, and one tiny picture is drawn. Reaches devices through Backend only, so that a
// new one is covered as soon as it is listed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "backends/backend.h"

namespace bonsai {

struct CheckResult {
    std::string name; // of the operation, then the variant: "linear Q8_0 fast"
    bool passed = false;
    double error = 0; // largest difference, over the largest value there should be; infinite for
                      // what is not a number
    double allowed = 0;
    double seconds = 0;
    std::string message; // what is wrong; empty when passed
};

struct SelfTestReport {
    DeviceInfo device; // under test
    std::vector<CheckResult> checks;
    double seconds = 0;
    int failures() const;
};

using BackendMaker = std::function<Status(Precision precision, std::unique_ptr<Backend>* out)>;

// Fails when no backend can be made; whatever goes wrong in a check is that check's result.
Status run_self_test(const BackendMaker& make, SelfTestReport* out);

// The parts of it. With kFast the first runs only what depends on the precision: linear layers and
// convolutions.
void check_ops(Backend& backend, Precision precision, std::vector<CheckResult>* out);
void check_picture(std::unique_ptr<Backend> backend, Precision precision,
                   std::vector<CheckResult>* out);

// The means of red, green and blue of each square of 16x16 pixels, 0 to 255, row after row, of a
// picture by the tiny model; check_picture() knows those of kPictureSeed.
constexpr uint64_t kPictureSeed = 42;
Status draw_known_picture(std::unique_ptr<Backend> backend, uint64_t seed,
                          std::vector<float>* means);

// All that a maintainer wants to know about a machine: versions, processor, memory, devices,
// checks.
std::string self_test_text(const SelfTestReport& report);
std::string self_test_json(const SelfTestReport& report);

} // namespace bonsai
