// SPDX-License-Identifier: Apache-2.0
#include "selftest/op_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/quantize.h"

namespace bonsai {

namespace {

// SplitMix64 (Steele, Lea, Flood 2014) of a counter: the same numbers on every machine.
uint64_t mix(uint64_t counter) {
    uint64_t z = counter * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

} // namespace

void OpBench::keep(const Status& status) {
    if (status_.ok()) status_ = status;
}

Floats OpBench::uniform(int64_t rows, int64_t cols, float mean, float spread) {
    Floats out(rows, cols);
    for (float& value : out.values)
        value = mean + spread * (static_cast<float>(mix(seed_++) >> 40) * 0x1p-23f - 1);
    return out;
}

Floats OpBench::representable(int64_t rows, int64_t cols) {
    Floats out(rows, cols);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
            const auto whole = static_cast<int>(mix(seed_++) % 253) - 126;
            // One entry of a group is the largest that int8 has, so that the scale is 2^-6.
            out.at(r, c) = static_cast<float>(c % kGroup == r % kGroup ? -127 : whole) * 0x1p-6f;
        }
    }
    return out;
}

Tensor OpBench::room(int64_t rows, int64_t cols) {
    Floats nothing(rows, cols);
    std::fill(nothing.values.begin(), nothing.values.end(),
              std::numeric_limits<float>::quiet_NaN());
    return put(nothing);
}

Tensor OpBench::put(const Floats& values) {
    std::unique_ptr<Buffer> buffer;
    const Status status = backend_.allocate(values.values.size() * sizeof(float), &buffer);
    keep(status);
    if (!status.ok()) return Tensor();
    const Tensor out = f32_matrix(static_cast<float*>(buffer->data()), values.rows, values.cols);
    keep(backend_.write(out, values.values.data()));
    buffers_.push_back(std::move(buffer));
    return out;
}

// Of rows of `groups` groups of a low-bit type: 64 to 127 times a power of two, a row's largest 127
// times it. Devices that round scales to 127ths of the row's largest have nothing to round.
static void set_scales(DType dtype, int64_t groups, std::vector<uint8_t>* packed) {
    const size_t bytes = dtype_info(dtype).bytes, at = dtype == DType::kPTQ1_0 ? 26 : 0;
    for (size_t i = 0; i < packed->size() / bytes; ++i) {
        const auto group = static_cast<int64_t>(i) % groups;
        const int whole = group == 0 ? 127 : 64 + static_cast<int>(i * 31 % 64);
        const uint16_t half = f32_to_f16(static_cast<float>(whole) * 0x1p-11f);
        (*packed)[i * bytes + at] = static_cast<uint8_t>(half & 255);
        (*packed)[i * bytes + at + 1] = static_cast<uint8_t>(half >> 8);
    }
}

Tensor OpBench::weight(DType dtype, int64_t rows, int64_t cols, Floats* floats) {
    const Floats drawn = uniform(rows, cols, 0, 0.125f);
    const size_t bytes = row_bytes(dtype, cols);
    packed_.push_back(std::make_unique<std::vector<uint8_t>>(static_cast<size_t>(rows) * bytes));
    std::vector<uint8_t>& packed = *packed_.back();
    keep(quantize_rows(dtype, drawn.values.data(), rows, cols, packed.data()));
    if (is_low_bit(dtype)) set_scales(dtype, cols / kGroup, &packed);
    *floats = Floats(rows, cols);
    dequantize_row(dtype, packed.data(), floats->values.data(), rows * cols);
    Tensor out;
    std::unique_ptr<Buffer> owner;
    keep(backend_.load_weight(Tensor{dtype, rows, cols, cols, packed.data()}, &owner, &out));
    if (owner) buffers_.push_back(std::move(owner));
    return out;
}

Status OpBench::compare(const Expected& e, CheckResult* result) {
    Floats found(e.expected.rows, e.expected.cols);
    BONSAI_TRY(backend_.read(e.found, found.values.data()));
    double largest = 0;
    for (const double value : e.expected.values)
        largest = std::max(largest, std::fabs(value));
    for (int64_t r = 0; r < found.rows; ++r) {
        for (int64_t c = 0; c < found.cols; ++c) {
            const double expected = e.expected.at(r, c), there = found.at(r, c);
            const double difference =
                std::isfinite(there) ? std::fabs(there - expected) / largest : INFINITY;
            if (difference <= result->error) continue;
            result->error = difference;
            if (difference > result->allowed)
                result->message =
                    format("row %lld, column %lld is %g, expected %g", static_cast<long long>(r),
                           static_cast<long long>(c), there, expected);
        }
    }
    return Status();
}

void OpBench::run(const std::string& name, const std::function<Status(Backend&)>& operation,
                  const std::vector<Expected>& results, double allowed) {
    CheckResult result;
    result.name = name;
    result.allowed = allowed;
    const auto start = std::chrono::steady_clock::now();
    Status status = status_; // of the preparations
    if (status.ok()) status = operation(backend_);
    if (status.ok()) status = backend_.synchronize();
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (size_t i = 0; status.ok() && i < results.size(); ++i)
        status = compare(results[i], &result);
    if (!status.ok()) {
        result.error = INFINITY;
        result.message = status.message();
    }
    result.passed = result.error <= allowed;
    out_->push_back(std::move(result));
}

} // namespace bonsai
