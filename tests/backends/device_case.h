// SPDX-License-Identifier: Apache-2.0
// Any backend against the CPU: an op runs on both with the same random inputs, and what it leaves
// is compared. Every matrix lies between canaries, a NaN each: an op that reads one spoils its
// result, one that writes it is found out. Each case runs twice from the same start and has to give
// the same bytes.
//
//   TEST(device_silu) {
//       for_each_device(Precision::kExact, [](Pair& pair) {
//           Case c(pair, "3 x 5");
//           const Operand x = c.random(3, 5), out = c.room(3, 5);
//           c.run([&](Side s) { return s.backend.silu({x[s], out[s]}); });
//           c.expect_close(out, 1e-6);
//       });
//   }
#pragma once

#include <functional>
#include <memory>

#include "backends/backend.h"
#include "test.h"

namespace backend_test {

using namespace bonsai;

// The CPU and the device under test.
struct Pair {
    std::unique_ptr<Backend> cpu, device;
};

// Calls body for every device beside the processor, or for the one that BONSAI_TEST_DEVICE names;
// says so when there is none. The CPU has the same precision, or that of `reference`.
void for_each_device(Precision precision, Precision reference,
                     const std::function<void(Pair& pair)>& body);
inline void for_each_device(Precision precision, const std::function<void(Pair& pair)>& body) {
    for_each_device(precision, precision, body);
}

struct Side {
    Backend& backend;
    int index; // 0: CPU, 1: device
};

// A matrix on both sides.
struct Operand {
    int number = -1; // of the case's operands
    Tensor on[2];
    const Tensor& operator[](const Side& side) const { return on[side.index]; }
    Operand cols(int64_t begin, int64_t count) const {
        return {number, {on[0].slice_cols(begin, count), on[1].slice_cols(begin, count)}};
    }
    Operand rows(int64_t begin, int64_t count) const {
        return {number, {on[0].slice_rows(begin, count), on[1].slice_rows(begin, count)}};
    }
};

class Case {
  public:
    Case(Pair& pair, std::string name) : pair_(pair), name_(std::move(name)) {}

    // Uniform in mean +- spread. Rows lie `gap` floats apart, and begin `shift` floats behind an
    // address that is a multiple of 256.
    Operand random(int64_t rows, int64_t cols, int64_t gap = 0, int64_t shift = 0, float mean = 0,
                   float spread = 1);
    Operand filled(int64_t rows, int64_t cols, const std::function<float(int64_t, int64_t)>& value,
                   int64_t gap = 0, int64_t shift = 0);
    Operand room(int64_t rows, int64_t cols, int64_t gap = 0, int64_t shift = 0); // NaN
    // Random weights of a type, as of a model file; low-bit ones with the scales of groups that
    // `scale` says, if it does.
    Operand weight(DType dtype, int64_t rows, int64_t cols,
                   const std::function<float(int64_t row, int64_t group)>& scale = {});

    void run(const std::function<Status(Side side)>& op);
    // Every element differs from the CPU's by at most `allowed` of the largest there.
    void expect_close(const Operand& operand, double allowed);

  private:
    struct Memory {
        std::vector<float> start; // with canaries
        std::unique_ptr<Buffer> buffer[2];
    };
    Operand place(std::vector<float> values, int64_t rows, int64_t cols, int64_t gap,
                  int64_t shift);
    void restore();
    std::vector<std::vector<float>> contents(int side);
    void check_canaries(const std::vector<std::vector<float>>& found);
    void fail(const std::string& what);
    float uniform();

    Pair& pair_;
    std::string name_;
    bool broken_ = false; // the rest would be noise
    uint64_t seed_ = 1;
    std::vector<Memory> memories_;
    std::vector<std::unique_ptr<std::vector<uint8_t>>> packed_;
    std::vector<std::unique_ptr<Buffer>> owners_;
};

} // namespace backend_test
