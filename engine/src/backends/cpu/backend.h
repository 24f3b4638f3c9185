// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/backend.h"
#include "backends/cpu/features.h"
#include "core/thread_pool.h"

namespace bonsai::cpu {

// Cuts each op into independent pieces and lets the kernels of one level work on them in parallel.
// Ops run at once: the queue is always empty.
class CpuBackend final : public Backend {
  public:
    static Status create(const BackendOptions& options, Level level, std::unique_ptr<Backend>* out);

    const DeviceInfo& device() const override { return device_; }
    uint64_t memory_free() const override;
    void stop_when(const std::atomic<bool>* cancelled) override { pool_->stop_when(cancelled); }
    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override;
    Status load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) override;
    void evict_weight(const Tensor& weight) override;
    Status write(const Tensor& to, const void* host) override;
    Status read(const Tensor& from, void* host) override;
    Status copy(const Tensor& from, const Tensor& to) override;
    Status synchronize() override { return Status(); }

    // Largest scratch any worker ever held, for the assertion that weights are never expanded
    // beyond a tile.
    size_t scratch_peak() const;
    // What all workers share: what scratch_bytes says of the largest op since release_scratch.
    size_t shared_scratch() const { return shared_.peak(); }

    uint64_t scratch_bytes(const LinearArgs& args) const override;
    uint64_t scratch_bytes(const AttentionArgs& args) const override;
    uint64_t scratch_bytes(const Conv2dArgs& args) const override;
    void release_scratch() override { shared_.release(); }
    ActivationTypes activations() const override;

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
    CpuBackend(const BackendOptions& options, const KernelTable& table)
        : precision_(options.precision), table_(table) {}
    template <typename Args> Status by_rows(const Args& args, void (*kernel)(const Args&, Range));
    bool quantizes(const LinearArgs& args) const;
    Status quantize(const Tensor& x, QuantizedRows* out);
    Status winograd(const Conv2dArgs& args);
    using AttentionKernel =
        std::function<bool(const AttentionArgs& args, int head, Range rows, Scratch& scratch)>;
    Status attend(const AttentionArgs& args, int64_t piece, int64_t narrow,
                  const AttentionKernel& kernel);
    Status project(const Tensor& x, const QuantizedRows* quantized, const Projection& p);

    // codes.cpp
    template <typename Kernel>
    Status rows_to_codes(const char* op, const Tensor& out, const Kernel& kernel);
    Status layer_norm_to_codes(const LayerNormArgs& args);
    Status swiglu_to_codes(const SwigluArgs& args);
    Status take_codes(const Tensor& x, QuantizedRows* out);
    static size_t sums_bytes(const Tensor& x);
    Status project_activated(const Tensor& x, const QuantizedRows& codes, const Projection& p);
    void quantize_block(const Tensor& floats, const QuantizedRows& codes, int64_t column,
                        Range rows) const;
    Status attend_to_codes(const AttentionArgs& args, int64_t piece, int64_t narrow,
                           const AttentionKernel& kernel);

    Precision precision_;
    const KernelTable& table_;
    DeviceInfo device_;
    std::unique_ptr<ThreadPool> pool_;
    // One for each worker: of kernels, and of floats that become codes.
    std::vector<Scratch> scratch_, blocks_;
    // The int8 form of a linear's input, or the sums of its codes, keys and values of an attention,
    // or the transformed weights of a convolution: no two of them at a time.
    Scratch shared_;
    Scratch sums_;
};

} // namespace bonsai::cpu
