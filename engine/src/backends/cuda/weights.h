// SPDX-License-Identifier: Apache-2.0
// Weights: the matrices of the model file on the device. Tensors of weights keep their addresses in
// the mapped file; a matrix is uploaded when an op first asks where it is, and stays until memory
// is needed and nobody has claimed it since it was marked idle. So whole stages come and go without
// anyone planning it, and embedding tables, of which few rows are read, never come.
#pragma once

#include <cuda_runtime_api.h>

#include <map>

#include "backends/cuda/memory.h"
#include "backends/cuda/staging.h"
#include "backends/cuda/weight_layout.h"

namespace bonsai::cuda {

class Weights {
  public:
    Weights(Memory& memory, Staging& staging) : memory_(memory), staging_(staging) {}
    ~Weights();

    void add(const Tensor& host);
    void remove(const void* host);
    bool known(const void* address) const { return find(address) != entries_.end(); }
    // Turns a weight, or rows of one, into what the device has of it: another address and layout
    // (weight_layout.h), folded if it can be and is asked for. Other tensors stay. The memory's
    // stream waits for the upload. A matrix that is asked for in both layouts is there twice.
    Status locate(Tensor* weight, bool folded = false);
    void mark_idle(const void* host);
    void drop_now(const void* host);
    // Frees idle matrices; returns the bytes freed. First those that the present stage has not
    // used: their turn comes with the next picture. Of a stage that does not fit and goes through
    // its matrices again and again, the one used last has the longest time to wait.
    uint64_t drop(uint64_t bytes);
    void next_stage() { ++stage_; }

    void freeze(bool frozen) { frozen_ = frozen; }
    // Changes whenever a matrix has left the device.
    uint64_t generation() const { return generation_; }

  private:
    struct Place {
        DeviceWeight there;
        void* device = nullptr;
    };
    struct Entry {
        Tensor host;
        size_t file_bytes = 0;
        Place places[2]; // as it is for all products, and folded
        int users = 0;
        uint64_t idle_since = 0; // 0: in use
        uint64_t stage = 0;      // of the last use
        bool loaded() const { return places[0].device || places[1].device; }
    };
    using Entries = std::map<const uint8_t*, Entry>;
    Entries::const_iterator find(const void* address) const;
    Status load(const Entry& entry, Place* place);
    Status fill(const Entry& entry, const DeviceWeight& there, void* device);
    size_t free(Entry* entry); // returns the bytes freed

    Memory& memory_;
    Staging& staging_;
    Entries entries_; // by address in the file
    uint64_t clock_ = 0, stage_ = 0, generation_ = 0;
    cudaEvent_t arrived_ = nullptr;
    bool frozen_ = false;
};

} // namespace bonsai::cuda
