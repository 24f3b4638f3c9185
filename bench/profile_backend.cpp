// SPDX-License-Identifier: Apache-2.0
#include "profile_backend.h"

#include <chrono>
#include <ctime>

namespace bonsai::bench {

namespace {

std::string shape(int64_t rows, int64_t cols) {
    return std::to_string(rows) + "x" + std::to_string(cols);
}

double product(double a, double b, double c) {
    return 2 * a * b * c * 1e-9;
}

} // namespace

Clock Clock::now() {
    const auto wall = std::chrono::steady_clock::now().time_since_epoch();
    return {std::chrono::duration<double>(wall).count(),
            static_cast<double>(std::clock()) / CLOCKS_PER_SEC};
}

void ProfileBackend::note(const Line& line, const Clock& start) {
    const Clock end = Clock::now();
    OpTotal& total = totals_[stage_][line.name];
    ++total.calls;
    total.wall += end.wall - start.wall;
    total.cpu += end.cpu - start.cpu;
    total.giga_ops += line.giga_ops;
    total.bytes = line.bytes;
}

ProfileBackend::Line ProfileBackend::line(const char* name, const Tensor& tensor) {
    return {std::string(name) + " " + shape(tensor.rows, tensor.cols)};
}

// One line for each width of fused projections; their types are equal.
ProfileBackend::Line ProfileBackend::describe(const char* name, const LinearArgs& args) const {
    int64_t out = 0;
    for (int i = 0; i < args.count; ++i)
        out += args.projections[i].weight.rows;
    const DType dtype = args.projections[0].weight.dtype;
    return {std::string(name) + " " + dtype_info(dtype).name + " " +
                shape(args.x.rows, args.x.cols) + "x" + std::to_string(out),
            product(static_cast<double>(args.x.rows), static_cast<double>(args.x.cols),
                    static_cast<double>(out)),
            precision_ == Precision::kFast && !args.exact && is_block_quantized(dtype)};
}

// Of a causal product half is counted.
ProfileBackend::Line ProfileBackend::describe(const char* name, const AttentionArgs& args) const {
    const double ops =
        2 *
        product(static_cast<double>(args.q.rows), static_cast<double>(args.k.rows), args.head_dim) *
        args.heads * (args.causal ? 0.5 : 1);
    return {std::string(name) + " " + shape(args.q.rows, args.k.rows) + " " +
                std::to_string(args.heads) + "x" + std::to_string(args.head_dim) +
                (args.causal ? " causal" : ""),
            ops};
}

ProfileBackend::Line ProfileBackend::describe(const char* name, const Conv2dArgs& args) const {
    return {std::string(name) + " " + shape(args.kernel, args.kernel) + " " +
                std::to_string(args.x.cols) + "->" + std::to_string(args.out.cols) + " " +
                shape(args.width, args.height) + (args.upsample ? " doubled" : ""),
            product(static_cast<double>(args.out.rows), static_cast<double>(args.out.cols),
                    static_cast<double>(args.weight.cols))};
}

} // namespace bonsai::bench
