// SPDX-License-Identifier: Apache-2.0
// WrappedBackend: hands memory and queue on to another backend; who derives from it does something
// around the ops (measures them, disturbs them for a test).
#pragma once

#include <utility>

#include "backends/backend.h"

namespace bonsai {

class WrappedBackend : public Backend {
  public:
    explicit WrappedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

    const DeviceInfo& device() const override { return inner_->device(); }
    uint64_t memory_free() const override { return inner_->memory_free(); }
    uint64_t memory_used() const override { return inner_->memory_used(); }
    void stop_when(const std::atomic<bool>* cancelled) override { inner_->stop_when(cancelled); }
    bool keeps_memory() const override { return inner_->keeps_memory(); }
    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override {
        return inner_->allocate(bytes, out);
    }
    Status load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) override {
        return inner_->load_weight(host, owner, out);
    }
    void evict_weight(const Tensor& weight) override { inner_->evict_weight(weight); }
    void drop_weight(const Tensor& weight) override { inner_->drop_weight(weight); }
    Status write(const Tensor& to, const void* host) override { return inner_->write(to, host); }
    Status read(const Tensor& from, void* host) override { return inner_->read(from, host); }
    Status read_beside(const Tensor& from, void* host) override {
        return inner_->read_beside(from, host);
    }
    Status read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) override {
        return inner_->read_pixels(from, rgb, finite);
    }
    Status copy(const Tensor& from, const Tensor& to) override { return inner_->copy(from, to); }
    Status synchronize() override { return inner_->synchronize(); }
    int64_t batch() const override { return inner_->batch(); }
    ActivationTypes activations() const override { return inner_->activations(); }
    uint64_t scratch_bytes(const LinearArgs& args) const override {
        return inner_->scratch_bytes(args);
    }
    uint64_t scratch_bytes(const AttentionArgs& args) const override {
        return inner_->scratch_bytes(args);
    }
    uint64_t scratch_bytes(const Conv2dArgs& args) const override {
        return inner_->scratch_bytes(args);
    }
    void release_scratch() override { inner_->release_scratch(); }

  protected:
    Backend& inner() { return *inner_; }

  private:
    std::unique_ptr<Backend> inner_;
};

// A wrapper that does the same around every op: Derived has a public
//     template <typename Args> Status op(const char* name, const Args&, Op<Args> run)
// which calls (inner().*run)(args) when it likes.
template <typename Derived> class EachOp : public WrappedBackend {
  public:
    template <typename Args> using Op = Status (Backend::*)(const Args&);
    using WrappedBackend::WrappedBackend;

  protected:
    Status do_linear(const LinearArgs& a) override {
        return self().op("linear", a, &Backend::linear);
    }
    Status do_rms_norm(const RmsNormArgs& a) override {
        return self().op("rms_norm", a, &Backend::rms_norm);
    }
    Status do_layer_norm(const LayerNormArgs& a) override {
        return self().op("layer_norm", a, &Backend::layer_norm);
    }
    Status do_head_norm_rope(const HeadNormRopeArgs& a) override {
        return self().op("head_norm_rope", a, &Backend::head_norm_rope);
    }
    Status do_attention(const AttentionArgs& a) override {
        return self().op("attention", a, &Backend::attention);
    }
    Status do_swiglu(const SwigluArgs& a) override {
        return self().op("swiglu", a, &Backend::swiglu);
    }
    Status do_silu(const SiluArgs& a) override { return self().op("silu", a, &Backend::silu); }
    Status do_embed_rows(const EmbedRowsArgs& a) override {
        return self().op("embed_rows", a, &Backend::embed_rows);
    }
    Status do_group_norm(const GroupNormArgs& a) override {
        return self().op("group_norm", a, &Backend::group_norm);
    }
    Status do_affine(const AffineArgs& a) override {
        return self().op("affine", a, &Backend::affine);
    }
    Status do_conv2d(const Conv2dArgs& a) override {
        return self().op("conv2d", a, &Backend::conv2d);
    }

  private:
    Derived& self() { return static_cast<Derived&>(*this); }
};

} // namespace bonsai
