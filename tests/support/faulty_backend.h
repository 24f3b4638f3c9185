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

class FaultyBackend final : public WrappedBackend {
  public:
    FaultyBackend(std::unique_ptr<Backend> inner, std::string op, Fault fault)
        : WrappedBackend(std::move(inner)), op_(std::move(op)), fault_(fault) {}

  protected:
    Status do_linear(const LinearArgs& a) override {
        return spoil("linear", a.projections[a.count - 1].out, inner().linear(a));
    }
    Status do_rms_norm(const RmsNormArgs& a) override {
        return spoil("rms_norm", a.out, inner().rms_norm(a));
    }
    Status do_layer_norm(const LayerNormArgs& a) override {
        return spoil("layer_norm", a.out, inner().layer_norm(a));
    }
    Status do_head_norm_rope(const HeadNormRopeArgs& a) override {
        return spoil("head_norm_rope", a.x, inner().head_norm_rope(a));
    }
    Status do_attention(const AttentionArgs& a) override {
        return spoil("attention", a.out, inner().attention(a));
    }
    Status do_swiglu(const SwigluArgs& a) override {
        return spoil("swiglu", a.out, inner().swiglu(a));
    }
    Status do_silu(const SiluArgs& a) override { return spoil("silu", a.out, inner().silu(a)); }
    Status do_embed_rows(const EmbedRowsArgs& a) override {
        return spoil("embed_rows", a.out, inner().embed_rows(a));
    }
    Status do_group_norm(const GroupNormArgs& a) override {
        return spoil("group_norm", a.affine, inner().group_norm(a));
    }
    Status do_affine(const AffineArgs& a) override {
        return spoil("affine", a.out, inner().affine(a));
    }
    Status do_conv2d(const Conv2dArgs& a) override {
        return spoil("conv2d", a.out, inner().conv2d(a));
    }

  private:
    Status spoil(const char* op, const Tensor& out, Status status) {
        if (op_ != op || !status.ok()) return status;
        float* last = out.row(out.rows - 1) + out.cols - 1;
        switch (fault_) {
        case Fault::kNone:
            break;
        case Fault::kOffByLittle: { // one element, by a hundredth of the largest
            float largest = 0;
            for (int64_t r = 0; r < out.rows; ++r)
                for (int64_t c = 0; c < out.cols; ++c)
                    largest = std::fmax(largest, std::fabs(out.row(r)[c]));
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
