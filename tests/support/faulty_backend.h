// SPDX-License-Identifier: Apache-2.0
// A device that computes as another one does, but for one operation.
#pragma once

#include <cmath>
#include <cstring>

#include "backends/wrapped.h"

namespace test {

using namespace bonsai;

// What a device may do wrong.
enum class Fault { kNone, kOffByLittle, kNan, kUnsupported };

class FaultyBackend final : public EachOp<FaultyBackend> {
  public:
    FaultyBackend(std::unique_ptr<Backend> inner, std::string op, Fault fault)
        : EachOp(std::move(inner)), op_(std::move(op)), fault_(fault) {}

    template <typename Args> Status op(const char* name, const Args& args, Op<Args> run) {
        return spoil(name, result(args), (inner().*run)(args));
    }

  private:
    // What an op writes, or the last of it.
    template <typename Args> static const Tensor& result(const Args& args) { return args.out; }
    static const Tensor& result(const LinearArgs& args) {
        return args.projections[args.count - 1].out;
    }
    static const Tensor& result(const HeadNormRopeArgs& args) { return args.x; }
    static const Tensor& result(const GroupNormArgs& args) { return args.affine; }

    Status spoil(const char* op, const Tensor& out, Status status) {
        if (op_ != op || !status.ok()) return status;
        // Of codes the last scale.
        const Tensor floats = out.dtype == DType::kF32
                                  ? out
                                  : Tensor{DType::kF32, scale_groups(out.cols, out.scale_group),
                                           out.rows, out.scale_stride, out.scales};
        float* last = floats.row(floats.rows - 1) + floats.cols - 1;
        switch (fault_) {
        case Fault::kNone:
            break;
        case Fault::kOffByLittle: { // one element, by a hundredth of the largest
            float largest = 0;
            for (int64_t r = 0; r < floats.rows; ++r)
                for (int64_t c = 0; c < floats.cols; ++c)
                    largest = std::fmax(largest, std::fabs(floats.row(r)[c]));
            *last += 0.01f * largest;
            break;
        }
        case Fault::kNan:
            *last = NAN;
            break;
        case Fault::kUnsupported:
            return fail(ErrorCode::kUnsupported, "the device does not offer %s", op);
        }
        return status;
    }

    std::string op_;
    Fault fault_;
};

} // namespace test
