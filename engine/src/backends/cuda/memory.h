// SPDX-License-Identifier: Apache-2.0
// Memory: the device memory of one backend, from a pool of its own. Freed in the order of the
// stream, so that what is queued may still use it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "core/status.h"

namespace bonsai::cuda {

// Makes a device the calling thread's current one and puts back what was: a program may use CUDA
// itself.
class DeviceScope {
  public:
    explicit DeviceScope(int device) {
        if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
        if (before_ != device) changed_ = cudaSetDevice(device) == cudaSuccess;
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

class Memory {
  public:
    // limit: bytes to stay below where something can be given back for it; 0: what there is.
    static Status create(int device, uint64_t limit, std::shared_ptr<Memory>* out);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    int device() const { return device_; }
    cudaStream_t stream() const { return stream_; }       // of the ops
    cudaStream_t transfers() const { return transfers_; } // of uploads of weights

    // Asks the reclaimer when the limit or the device has no room. `what` is for the message.
    Status allocate(size_t bytes, const char* what, void** out, bool for_transfer = false);
    void release(void* data, size_t bytes);
    // Gives back at least that many bytes if it can; returns how many.
    void set_reclaimer(std::function<uint64_t(uint64_t bytes)> reclaimer) {
        reclaimer_ = std::move(reclaimer);
    }

    uint64_t used() const { return used_; }
    uint64_t peak() const { return peak_; } // most used at a time
    uint64_t available() const;             // what all of our memory could come to, bytes

  private:
    Memory() = default;
    uint64_t held() const; // by the pool, used or not

    int device_ = 0;
    uint64_t limit_ = 0, used_ = 0, peak_ = 0;
    cudaMemPool_t pool_ = nullptr;
    cudaStream_t stream_ = nullptr, transfers_ = nullptr;
    std::function<uint64_t(uint64_t)> reclaimer_;
};

} // namespace bonsai::cuda
