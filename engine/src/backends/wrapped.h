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

} // namespace bonsai
