// SPDX-License-Identifier: Apache-2.0
#include "device_case.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/half.h"
#include "core/quantize.h"

namespace backend_test {

namespace {

constexpr int64_t kBorder = 64; // floats: 256 bytes
constexpr uint32_t kCanary = 0x7FC0DEADu;

float canary() {
    float value;
    std::memcpy(&value, &kCanary, sizeof value);
    return value;
}

bool same_bits(float a, float b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

Tensor whole(const Buffer& buffer) {
    return f32_matrix(static_cast<float*>(buffer.data()), 1,
                      static_cast<int64_t>(buffer.size() / sizeof(float)));
}

std::vector<std::string> devices_under_test() {
    if (const char* named = std::getenv("BONSAI_TEST_DEVICE")) return {named};
    std::vector<std::string> ids;
    for (const DeviceInfo& info : list_devices())
        if (info.id != "cpu") ids.push_back(info.id);
    return ids;
}

} // namespace

void for_each_device(Precision precision, Precision reference,
                     const std::function<void(Pair& pair)>& body) {
    static const std::vector<std::string> ids = devices_under_test();
    if (ids.empty()) std::printf("SKIPPED: no device beside the processor is here\n");
    for (const std::string& id : ids) {
        Pair pair;
        BackendOptions options;
        options.precision = reference;
        CHECK_OK(create_backend("cpu", options, &pair.cpu));
        options.precision = precision;
        CHECK_OK(create_backend(id, options, &pair.device));
        if (pair.cpu && pair.device) body(pair);
    }
}

void Case::fail(const std::string& what) {
    broken_ = true;
    ::test::failed("device", 0, pair_.device->device().id + ", " + name_ + ": " + what);
}

float Case::uniform() { // SplitMix64 (Steele, Lea, Flood 2014)
    uint64_t z = seed_++ * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1;
}

Operand Case::place(std::vector<float> values, int64_t rows, int64_t cols, int64_t gap,
                    int64_t shift) {
    const int64_t stride = cols + gap, first = kBorder + shift;
    Operand operand;
    operand.number = static_cast<int>(memories_.size());
    Memory memory;
    memory.start.assign(static_cast<size_t>(first + rows * stride + kBorder), canary());
    for (int64_t r = 0; r < rows; ++r)
        std::copy_n(&values[static_cast<size_t>(r * cols)], cols,
                    &memory.start[static_cast<size_t>(first + r * stride)]);
    for (int side = 0; side < 2; ++side) {
        Backend& backend = side == 0 ? *pair_.cpu : *pair_.device;
        const Status status =
            backend.allocate(memory.start.size() * sizeof(float), &memory.buffer[side]);
        if (!status.ok()) {
            fail(status.message());
            return operand;
        }
        float* data = static_cast<float*>(memory.buffer[side]->data()) + first;
        operand.on[side] = Tensor{DType::kF32, rows, cols, stride, data};
    }
    memories_.push_back(std::move(memory));
    return operand;
}

Operand Case::filled(int64_t rows, int64_t cols,
                     const std::function<float(int64_t, int64_t)>& value, int64_t gap,
                     int64_t shift) {
    std::vector<float> values;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
            values.push_back(value(r, c));
    return place(std::move(values), rows, cols, gap, shift);
}

Operand Case::random(int64_t rows, int64_t cols, int64_t gap, int64_t shift, float mean,
                     float spread) {
    return filled(
        rows, cols, [&](int64_t, int64_t) { return mean + spread * uniform(); }, gap, shift);
}

Operand Case::room(int64_t rows, int64_t cols, int64_t gap, int64_t shift) {
    return filled(rows, cols, [](int64_t, int64_t) { return canary(); }, gap, shift);
}

Operand Case::weight(DType dtype, int64_t rows, int64_t cols,
                     const std::function<float(int64_t, int64_t)>& scale) {
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& value : values)
        value = 0.125f * uniform();
    packed_.push_back(
        std::make_unique<std::vector<uint8_t>>(static_cast<size_t>(rows) * row_bytes(dtype, cols)));
    Operand operand;
    Status status = quantize_rows(dtype, values.data(), rows, cols, packed_.back()->data());
    const int64_t groups = scale && is_low_bit(dtype) ? cols / kGroup : 0;
    for (int64_t i = 0; i < rows * groups; ++i) {
        uint8_t* at = packed_.back()->data() + static_cast<size_t>(i) * dtype_info(dtype).bytes +
                      (dtype == DType::kPTQ1_0 ? 26 : 0);
        const uint16_t bits = f32_to_f16(scale(i / groups, i % groups));
        at[0] = static_cast<uint8_t>(bits & 255), at[1] = static_cast<uint8_t>(bits >> 8);
    }
    for (int side = 0; side < 2 && status.ok(); ++side) {
        Backend& backend = side == 0 ? *pair_.cpu : *pair_.device;
        std::unique_ptr<Buffer> owner;
        status = backend.load_weight(Tensor{dtype, rows, cols, cols, packed_.back()->data()},
                                     &owner, &operand.on[side]);
        if (owner) owners_.push_back(std::move(owner));
    }
    if (!status.ok()) fail(status.message());
    return operand;
}

void Case::restore() {
    for (const Memory& memory : memories_)
        for (int side = 0; side < 2; ++side) {
            Backend& backend = side == 0 ? *pair_.cpu : *pair_.device;
            const Status status = backend.write(whole(*memory.buffer[side]), memory.start.data());
            if (!status.ok()) fail(status.message());
        }
}

std::vector<std::vector<float>> Case::contents(int side) {
    std::vector<std::vector<float>> all;
    for (const Memory& memory : memories_) {
        all.emplace_back(memory.start.size());
        Backend& backend = side == 0 ? *pair_.cpu : *pair_.device;
        const Status status = backend.read(whole(*memory.buffer[side]), all.back().data());
        if (!status.ok()) fail(status.message());
    }
    return all;
}

// Canaries that the CPU left alone are those of borders, gaps and room that the op does not fill.
void Case::check_canaries(const std::vector<std::vector<float>>& found) {
    const std::vector<std::vector<float>> expected = contents(0);
    for (size_t m = 0; m < found.size(); ++m)
        for (size_t i = 0; i < found[m].size(); ++i)
            if (same_bits(expected[m][i], canary()) != same_bits(found[m][i], canary()))
                return fail(
                    format("operand %zu: float %lld from its begin is %s", m,
                           static_cast<long long>(i) - static_cast<long long>(kBorder),
                           same_bits(found[m][i], canary()) ? "not written" : "overwritten"));
}

void Case::run(const std::function<Status(Side side)>& op) {
    std::vector<std::vector<float>> first;
    for (int round = 0; round < 2 && !broken_; ++round) {
        restore();
        Status status = round == 0 ? op({*pair_.cpu, 0}) : Status();
        if (status.ok()) status = op({*pair_.device, 1});
        if (status.ok()) status = pair_.device->synchronize();
        if (!status.ok()) return fail(status.message());
        if (round > 0) // what restore() took away
            status = op({*pair_.cpu, 0});
        std::vector<std::vector<float>> found = contents(1);
        check_canaries(found);
        for (size_t m = 0; round > 0 && m < found.size(); ++m)
            for (size_t i = 0; i < found[m].size(); ++i)
                if (!broken_ && !same_bits(found[m][i], first[m][i]))
                    fail(format("operand %zu: float %lld is %.9g, then %.9g", m,
                                static_cast<long long>(i) - static_cast<long long>(kBorder),
                                static_cast<double>(first[m][i]),
                                static_cast<double>(found[m][i])));
        first = std::move(found);
    }
}

void Case::expect_close(const Operand& operand, double allowed) {
    if (broken_) return;
    std::vector<float> values[2];
    for (int side = 0; side < 2; ++side) {
        Backend& backend = side == 0 ? *pair_.cpu : *pair_.device;
        values[side].resize(static_cast<size_t>(operand.on[side].rows * operand.on[side].cols));
        const Status status = backend.read(operand.on[side], values[side].data());
        if (!status.ok()) return fail(status.message());
    }
    double largest = 0, worst = 0;
    for (const float value : values[0])
        largest = std::max(largest, std::fabs(static_cast<double>(value)));
    const int64_t cols = operand.on[0].cols;
    for (size_t i = 0; i < values[0].size(); ++i) {
        const double expected = values[0][i], found = values[1][i];
        const double difference = std::fabs(found - expected);
        worst = std::max(worst, difference / largest);
        if (difference <= allowed * largest) continue; // NaN fails
        return fail(format("row %lld, column %lld is %.9g, expected %.9g, largest %.9g",
                           static_cast<long long>(static_cast<int64_t>(i) / cols),
                           static_cast<long long>(static_cast<int64_t>(i) % cols), found, expected,
                           largest));
    }
    if (std::getenv("BONSAI_TEST_VERBOSE"))
        std::printf("  %s: error %.2g of %.2g\n", name_.c_str(), worst, allowed);
}

} // namespace backend_test
