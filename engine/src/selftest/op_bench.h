// SPDX-License-Identifier: Apache-2.0
// OpBench: what one check of an operation needs. It makes inputs, keeps them on the device, runs
// the operation once and compares.
#pragma once

#include "selftest/op_formulas.h"
#include "selftest/self_test.h"

namespace bonsai {

class OpBench {
  public:
    OpBench(Backend& backend, std::vector<CheckResult>* out) : backend_(backend), out_(out) {}

    // Uniform numbers from mean - spread to mean + spread.
    Floats uniform(int64_t rows, int64_t cols, float mean = 0, float spread = 1);
    // What int8 with one scale for each row and 128 columns holds without loss, and every wider
    // type too: fast linear layers then owe the same result as exact ones.
    Floats representable(int64_t rows, int64_t cols);

    // The same on the device. A failure is kept and becomes the result of the check.
    Tensor put(const Floats& values);
    Tensor room(int64_t rows, int64_t cols); // filled with NaN: each element has to be written
    // Random weights of a type, and the floats they stand for; scales of low-bit ones are such that
    // devices which round them owe the same result.
    Tensor weight(DType dtype, int64_t rows, int64_t cols, Floats* floats);

    struct Expected {
        Tensor found; // where the operation leaves its result
        Numbers expected;
    };
    // Sums of f32 in any order stay far below this; a wrong element or a lost tail stays far above.
    static constexpr double kAllowed = 1e-3;
    void run(const std::string& name, const std::function<Status(Backend& backend)>& operation,
             const std::vector<Expected>& results, double allowed = kAllowed);

  private:
    void keep(const Status& status);
    Status compare(const Expected& e, CheckResult* result); // against result->allowed

    Backend& backend_;
    std::vector<CheckResult>* out_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<std::unique_ptr<std::vector<uint8_t>>> packed_; // weights that a device may map
    Status status_;
    uint64_t seed_ = 1;
};

} // namespace bonsai
