// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/cuda/context.h"
#include "backends/cuda/memory.h"
#include "backends/cuda/staging.h"
#include "backends/cuda/weights.h"

namespace bonsai::cuda {

// One CUDA device with a stream of its own. Ops are queued; weights arrive when they are first
// used.
class CudaBackend final : public Backend {
  public:
    static Status create(const BackendOptions& options, int device, std::unique_ptr<Backend>* out);
    ~CudaBackend() override;

    const DeviceInfo& device() const override { return device_; }
    uint64_t memory_free() const override;
    uint64_t memory_used() const override;
    bool keeps_memory() const override { return true; }
    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override;
    Status load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) override;
    void evict_weight(const Tensor& weight) override;
    void drop_weight(const Tensor& weight) override;
    void release_scratch() override;
    Status write(const Tensor& to, const void* host) override;
    Status read(const Tensor& from, void* host) override;
    Status read_beside(const Tensor& from, void* host) override;
    Status read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) override;
    Status copy(const Tensor& from, const Tensor& to) override;
    Status synchronize() override;
    Status begin_capture() override;
    Status end_capture(std::unique_ptr<Capture>* out) override;
    Status replay(const Capture& capture) override;
    int64_t batch() const override { return context_.precision == Precision::kFast ? 8 : 1; }
    ActivationTypes activations() const override;
    uint64_t scratch_bytes(const LinearArgs& args) const override;
    uint64_t scratch_bytes(const AttentionArgs& args) const override;
    uint64_t scratch_bytes(const Conv2dArgs& args) const override;

  protected:
    Status do_linear(const LinearArgs& args) override;
    Status do_linear_pair(const LinearArgs& a, const LinearArgs& b) override;
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
    Status locate_weights(LinearArgs* args);
    CudaBackend() = default;
    template <typename Args>
    Status launch(Status (*launcher)(const Context&, const Args&), const Args& args);
    Status gather_rows(const EmbedRowsArgs& args);
    void freeze(bool frozen);

    DeviceInfo device_;
    std::shared_ptr<Memory> memory_; // buffers hold it too
    std::unique_ptr<Staging> staging_;
    std::shared_ptr<Weights> weights_; // and those of weights this
    std::unique_ptr<Scratch> scratch_;
    Context context_;
};

} // namespace bonsai::cuda
