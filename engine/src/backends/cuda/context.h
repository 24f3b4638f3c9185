// SPDX-License-Identifier: Apache-2.0
// What a launcher of CUDA kernels is given besides its op: the device, its stream, and scratch
// memory.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/backend.h"

namespace bonsai::cuda {

// A Status for the runtime's answer; `what` names the call or kernel.
Status check(cudaError_t code, const char* what);
// The last launch's error, if it had one.
inline Status check_launch(const char* kernel) {
    return check(cudaGetLastError(), kernel);
}

// Device memory for one op's intermediates. Ops run in stream order, so the next op may use the
// same bytes again; pieces of one op stay valid until the next reset().
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();
    // `bytes` aligned to 256; grows by a new block when what it has is too small.
    Status get(size_t bytes, void** out);
    template <typename T> Status get(size_t count, T** out) {
        void* bytes = nullptr;
        BONSAI_TRY(get(count * sizeof(T), &bytes));
        *out = static_cast<T*>(bytes);
        return Status();
    }
    void reset(); // between ops

  private:
    struct Block {
        void* data;
        size_t size;
        size_t used;
    };
    std::vector<Block> blocks_;
};

struct Context {
    int device = 0;
    int capability = 0; // 10 * major + minor: 90 on Hopper
    int multiprocessors = 0;
    size_t shared_memory = 0; // a block's limit after opting in, bytes
    Precision precision = Precision::kFast;
    cudaStream_t stream = nullptr;
    Scratch* scratch = nullptr;
};

} // namespace bonsai::cuda
