// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: the levels this machine can run, random matrices between canaries,
// and error measures.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>

#include "backends/cpu/features.h"
#include "backends/cpu/table.h"
#include "test.h"

namespace op_test {

using namespace bonsai;
using bonsai::cpu::KernelTable;
using bonsai::cpu::Range;
using bonsai::cpu::Scratch;

// Tables of all levels that this processor runs, worst first; their names are printed once.
inline const std::vector<const KernelTable*>& levels() {
    static const std::vector<const KernelTable*> all = [] {
        std::vector<const KernelTable*> found;
        std::printf("levels:");
        for (const cpu::Level level : cpu::levels_of(cpu::detected_features())) {
            found.push_back(&cpu::kernel_table(level));
            std::printf(" %s", found.back()->level);
        }
        std::printf("; not on this processor:");
        for (const cpu::LevelInfo& info : cpu::level_list())
            if (!cpu::supports(cpu::detected_features(), info.level)) std::printf(" %s", info.name);
        std::printf("\n");
        return found;
    }();
    return all;
}

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    // In [-1, 1).
    float uniform() {
        return static_cast<float>(static_cast<int64_t>(bits() >> 40) - (1 << 23)) / (1 << 23);
    }
    // In [low, high].
    int integer(int low, int high) {
        return low + static_cast<int>(bits() % static_cast<uint64_t>(high - low + 1));
    }

  private:
    uint64_t state_;
};

// An f32 matrix whose rows lie `gap` floats apart, with canaries before, between and after them. A
// canary is a NaN: a kernel that reads one spoils its result, one that writes it is caught by
// intact().
class Matrix {
  public:
    Matrix() = default;
    Matrix(int64_t rows, int64_t cols, int64_t gap = 0)
        : rows_(rows), cols_(cols), stride_(cols + gap),
          memory_(static_cast<size_t>(rows * (cols + gap)) + 2 * kBorder) {
        for (float& value : memory_)
            value = canary();
    }
    Matrix(int64_t rows, int64_t cols, int64_t gap, Random& random, float amplitude = 1.0f)
        : Matrix(rows, cols, gap) {
        fill([&](int64_t, int64_t) { return random.uniform() * amplitude; });
    }

    void fill(const std::function<float(int64_t, int64_t)>& value) {
        for (int64_t r = 0; r < rows_; ++r)
            for (int64_t c = 0; c < cols_; ++c)
                at(r, c) = value(r, c);
    }
    float& at(int64_t r, int64_t c) {
        return memory_[static_cast<size_t>(kBorder + r * stride_ + c)];
    }
    float at(int64_t r, int64_t c) const {
        return memory_[static_cast<size_t>(kBorder + r * stride_ + c)];
    }
    int64_t rows() const { return rows_; }
    int64_t cols() const { return cols_; }
    Tensor tensor() { return Tensor{DType::kF32, rows_, cols_, stride_, memory_.data() + kBorder}; }

    // No canary was written.
    bool intact() const {
        for (size_t i = 0; i < memory_.size(); ++i) {
            const int64_t offset = static_cast<int64_t>(i) - kBorder;
            const bool inside = offset >= 0 && offset < rows_ * stride_ && offset % stride_ < cols_;
            const float expected = canary();
            if (!inside && std::memcmp(&memory_[i], &expected, sizeof expected) != 0) return false;
        }
        return true;
    }
    bool same_bytes(const Matrix& other) const {
        return memory_.size() == other.memory_.size() &&
               std::memcmp(memory_.data(), other.memory_.data(), memory_.size() * sizeof(float)) ==
                   0;
    }

  private:
    static constexpr int64_t kBorder = 19; // odd: data are aligned to 4 bytes only
    static float canary() {
        const uint32_t bits = 0x7FC0DEADu;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    int64_t rows_ = 0, cols_ = 0, stride_ = 0;
    std::vector<float> memory_;
};

// Expected numbers, row after row, in double.
using Expected = std::vector<double>;

// |found - expected| / |expected| over all entries; NaN when an entry is NaN.
inline double rel_l2(const Matrix& found, const Expected& expected) {
    double error = 0, norm = 0;
    for (int64_t r = 0; r < found.rows(); ++r) {
        for (int64_t c = 0; c < found.cols(); ++c) {
            const double e = expected[static_cast<size_t>(r * found.cols() + c)];
            error += (found.at(r, c) - e) * (found.at(r, c) - e);
            norm += e * e;
        }
    }
    return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

// The largest |found - expected| / (|expected| + floor); infinite when an entry is NaN.
inline double worst(const Matrix& found, const Expected& expected, double floor) {
    double largest = 0;
    for (int64_t r = 0; r < found.rows(); ++r) {
        for (int64_t c = 0; c < found.cols(); ++c) {
            const double e = expected[static_cast<size_t>(r * found.cols() + c)];
            const double error = std::fabs(found.at(r, c) - e) / (std::fabs(e) + floor);
            largest = std::isnan(error) ? INFINITY : std::fmax(largest, error);
        }
    }
    return largest;
}

// `run` over [0, units) in pieces of several sizes, last piece first, leaves the same bytes in
// `out` as in one go. `out` holds the input of ops that work in place; it ends with the result of
// the single run.
inline bool same_in_pieces(int64_t units, Matrix& out, const std::function<void(Range)>& run) {
    const Matrix before = out;
    run({0, units});
    const Matrix whole = out;
    bool same = true;
    for (int64_t piece : {1, 3, 7, 32}) {
        if (piece >= units) break;
        out = before;
        for (int64_t i = (units - 1) / piece; i >= 0; --i)
            run({i * piece, i * piece + piece < units ? i * piece + piece : units});
        same = same && out.same_bytes(whole);
    }
    out = whole;
    return same;
}

} // namespace op_test
