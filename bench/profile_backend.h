// SPDX-License-Identifier: Apache-2.0
// ProfileBackend: a device's backend with a stop watch around every op. Ops of one kind, type and
// shape share a line.
#pragma once

#include <map>

#include "backends/wrapped.h"

namespace bonsai::bench {

// Wall clock and processor time of all threads of this process, in seconds.
struct Clock {
    double wall = 0;
    double cpu = 0;
    static Clock now();
};

struct OpTotal {
    int64_t calls = 0;
    double wall = 0;
    double cpu = 0;
    double giga_ops = 0; // multiplications and additions of linear, attention, conv2d; else 0
    bool bytes = false;  // done in int8: its ceiling is that of bytes
};

class ProfileBackend final : public WrappedBackend {
  public:
    using Totals = std::map<std::string, OpTotal>; // by "linear ptq1_0 1536x3072x27648"

    // Ops are added to totals[stage].
    ProfileBackend(std::unique_ptr<Backend> device, Precision precision, const std::string& stage,
                   std::map<std::string, Totals>* totals)
        : WrappedBackend(std::move(device)), precision_(precision), stage_(stage),
          totals_(*totals) {}

  protected:
    Status do_linear(const LinearArgs& args) override;
    Status do_rms_norm(const RmsNormArgs& args) override;
    Status do_layer_norm(const LayerNormArgs& args) override;
    Status do_head_norm_rope(const HeadNormRopeArgs& args) override;
    Status do_attention(const AttentionArgs& args) override;
    Status do_swiglu(const SwigluArgs& args) override;
    Status do_silu(const SiluArgs& args) override;
    Status do_embed_rows(const EmbedRowsArgs& args) override;
    Status do_group_norm(const GroupNormArgs& args) override;
    Status do_affine(const AffineArgs& args) override;
    Status do_conv2d(const Conv2dArgs& args) override;

  private:
    template <typename Args>
    Status timed(const std::string& name, double ops, bool bytes, const Args& args,
                 Status (Backend::*op)(const Args&));

    Precision precision_;
    const std::string& stage_; // the caller changes it as the pipeline goes on
    std::map<std::string, Totals>& totals_;
};

} // namespace bonsai::bench
