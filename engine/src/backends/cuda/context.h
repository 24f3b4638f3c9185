// SPDX-License-Identifier: Apache-2.0
// What a launcher of CUDA kernels is given besides its op: the device, its stream, and scratch
// memory.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/backend.h"

namespace bonsai::cuda {

class Memory;

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
    explicit Scratch(Memory& memory) : memory_(memory) {}
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
    // Between ops. Blocks become one at the next get(), as large as the op's pieces were together.
    void reset();
    void clear(); // gives all back

    // While ops are recorded nothing may grow: what has been recorded keeps its addresses.
    void freeze(bool frozen) { frozen_ = frozen; }
    // Changes whenever addresses handed out earlier are no longer ours.
    uint64_t generation() const { return generation_; }

  private:
    struct Block {
        void* data;
        size_t size;
        size_t used;
    };
    Memory& memory_;
    std::vector<Block> blocks_;
    size_t wanted_ = 0; // the least size of the next block
    uint64_t generation_ = 0;
    bool frozen_ = false;
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
