// SPDX-License-Identifier: Apache-2.0
// Arena: activations of one stage in one buffer, sized before the stage runs. A planning arena
// hands out addresses that nobody may touch; running a stage with it on a PlanBackend tells how
// much the real one needs.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backends/backend.h"

namespace bonsai {

class Arena {
  public:
    Arena() = default; // planning: no limit, no memory
    ~Arena();          // the stage has ended: what the backend's ops kept goes, too
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    // In a buffer of `bytes` on the backend, which must outlive the arena, or in one that is there.
    static Status create(Backend& backend, size_t bytes, std::unique_ptr<Arena>* out);
    static Status create(Backend& backend, std::shared_ptr<Buffer> buffer,
                         std::unique_ptr<Arena>* out);

    // A matrix of F32, F16 or I8, not initialised; first fit. scale_group: of I8.
    Status allocate(int64_t rows, int64_t cols, DType dtype, Tensor* out, int scale_group = kGroup);
    Status allocate(int64_t rows, int64_t cols, Tensor* out) {
        return allocate(rows, cols, DType::kF32, out);
    }
    // Returns a matrix from allocate to the arena and empties it.
    void release(Tensor* tensor);

    size_t peak() const { return peak_; }
    const void* memory() const { return buffer_ ? buffer_->data() : nullptr; }
    // A planning arena in which all that is in use here is in use, at the same addresses: what more
    // would it take?
    std::unique_ptr<Arena> trial() const;
    // What has been allocated since trial() is free again: that of ops of which one failed.
    void restore(const Arena& trial) { used_ = trial.used_; }
    // Hands out addresses only: what would be written there need not be computed.
    bool planning() const { return buffer_ == nullptr; }

  private:
    struct Block {
        size_t begin;
        size_t end;
    };
    // Any address but null, which would mean "absent".
    static constexpr uintptr_t kPlanningBase = 64;

    uintptr_t base_ = kPlanningBase;
    Backend* backend_ = nullptr;
    std::shared_ptr<Buffer> buffer_;
    std::vector<Block> used_; // in address order
    size_t peak_ = 0;
};

// Accepts every op whose arguments are valid and computes nothing; notes what the ops would take on
// the device that is planned for.
class PlanBackend final : public Backend {
  public:
    explicit PlanBackend(const Backend& planned) : planned_(planned) {}
    uint64_t scratch() const { return scratch_; } // the most that one op takes
    ActivationTypes activations() const override { return planned_.activations(); }
    const DeviceInfo& device() const override { return device_; }
    Status allocate(size_t, std::unique_ptr<Buffer>*) override { return Status(); }
    Status load_weight(const Tensor& host, std::unique_ptr<Buffer>*, Tensor* out) override {
        *out = host;
        return Status();
    }
    Status write(const Tensor&, const void*) override { return Status(); }
    Status read(const Tensor&, void*) override { return Status(); }
    Status copy(const Tensor&, const Tensor&) override { return Status(); }
    Status synchronize() override { return Status(); }

  protected:
    Status do_linear(const LinearArgs& args) override { return note(args); }
    Status do_rms_norm(const RmsNormArgs&) override { return Status(); }
    Status do_layer_norm(const LayerNormArgs&) override { return Status(); }
    Status do_head_norm_rope(const HeadNormRopeArgs&) override { return Status(); }
    Status do_attention(const AttentionArgs& args) override { return note(args); }
    Status do_swiglu(const SwigluArgs&) override { return Status(); }
    Status do_silu(const SiluArgs&) override { return Status(); }
    Status do_embed_rows(const EmbedRowsArgs&) override { return Status(); }
    Status do_group_norm(const GroupNormArgs&) override { return Status(); }
    Status do_affine(const AffineArgs&) override { return Status(); }
    Status do_conv2d(const Conv2dArgs& args) override { return note(args); }

  private:
    template <typename Args> Status note(const Args& args) {
        scratch_ = std::max(scratch_, planned_.scratch_bytes(args));
        return Status();
    }

    const Backend& planned_;
    uint64_t scratch_ = 0;
    DeviceInfo device_{"plan", "plan", "", 0, 0, 0};
};

} // namespace bonsai
