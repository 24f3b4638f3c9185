// SPDX-License-Identifier: Apache-2.0
// Staging: moves matrices between ordinary host memory and the device through two pieces of pinned
// memory, so that one is filled or emptied while the other one is on its way.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace bonsai::cuda {

class Staging {
  public:
    // Threads that copy: one alone does not keep up with the bus.
    static Status create(int threads, std::unique_ptr<Staging>* out);
    ~Staging();

    // Rows of `row` bytes, contiguous on the host and `stride` bytes apart on the device. The host
    // memory of an upload may change once this returns; a download has arrived.
    Status upload(void* device, size_t stride, const void* host, size_t row, size_t rows,
                  cudaStream_t stream);
    Status download(void* host, size_t row, size_t rows, const void* device, size_t stride,
                    cudaStream_t stream);

  private:
    struct Half {
        uint8_t* data = nullptr;
        cudaEvent_t free = nullptr; // reached when the device is done with it
    };
    Staging() = default;
    Status copy(void* to, const void* from, size_t bytes);

    Half halves_[2];
    int next_ = 0;
    std::unique_ptr<ThreadPool> threads_;
};

} // namespace bonsai::cuda
