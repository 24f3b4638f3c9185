// SPDX-License-Identifier: Apache-2.0
// ProfileBackend: a device's backend with a stop watch around every op. Ops of one kind, type and
// shape share a line.
#pragma once

#include <map>

#include "backends/backend.h"

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

class ProfileBackend final : public Backend {
  public:
    using Totals = std::map<std::string, OpTotal>; // by "linear ptq1_0 1536x3072x27648"

    // Ops are added to totals[stage].
    ProfileBackend(std::unique_ptr<Backend> device, Precision precision, const std::string& stage,
                   std::map<std::string, Totals>* totals)
        : inner_(std::move(device)), precision_(precision), stage_(stage), totals_(*totals) {}

    const DeviceInfo& device() const override { return inner_->device(); }
    uint64_t memory_free() const override { return inner_->memory_free(); }
    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override {
        return inner_->allocate(bytes, out);
    }
    Status load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) override {
        return inner_->load_weight(host, owner, out);
    }
    void evict_weight(const Tensor& weight) override { inner_->evict_weight(weight); }
    Status write(const Tensor& to, const void* host) override { return inner_->write(to, host); }
    Status read(const Tensor& from, void* host) override { return inner_->read(from, host); }
    Status copy(const Tensor& from, const Tensor& to) override { return inner_->copy(from, to); }
    Status synchronize() override { return inner_->synchronize(); }

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

    std::unique_ptr<Backend> inner_;
    Precision precision_;
    const std::string& stage_; // the caller changes it as the pipeline goes on
    std::map<std::string, Totals>& totals_;
};

} // namespace bonsai::bench
