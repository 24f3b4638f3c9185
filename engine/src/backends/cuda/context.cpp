// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/context.h"

#include <algorithm>

#include "backends/cuda/memory.h"

namespace bonsai::cuda {

namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kSmallestBlock = size_t{1} << 20;

} // namespace

Status check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return Status();
    cudaGetLastError(); // most errors stay until they are read
    if (code == cudaErrorMemoryAllocation)
        return fail(ErrorCode::kMemory, "%s: out of device memory", what);
    return fail(ErrorCode::kInternal, "%s: %s (%s); `bonsai-cli doctor` tests the device", what,
                cudaGetErrorString(code), cudaGetErrorName(code));
}

Scratch::~Scratch() {
    clear();
}

Status Scratch::get(size_t bytes, void** out) {
    bytes = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    if (blocks_.empty() || blocks_.back().size - blocks_.back().used < bytes) {
        if (frozen_)
            return fail(ErrorCode::kInternal, "scratch memory grows by %zu bytes while recording",
                        bytes);
        const size_t size = std::max({bytes, wanted_, kSmallestBlock});
        void* data = nullptr;
        BONSAI_TRY(memory_.allocate(size, "scratch space", &data));
        blocks_.push_back({data, size, 0});
        wanted_ = 0;
    }
    Block& block = blocks_.back();
    *out = static_cast<uint8_t*>(block.data) + block.used;
    block.used += bytes;
    return Status();
}

void Scratch::reset() {
    if (blocks_.size() > 1) {
        size_t wanted = 0;
        for (const Block& block : blocks_)
            wanted += block.used;
        clear();
        wanted_ = wanted;
    } else if (!blocks_.empty()) {
        blocks_[0].used = 0;
    }
}

void Scratch::clear() {
    for (const Block& block : blocks_)
        memory_.release(block.data, block.size);
    if (!blocks_.empty()) ++generation_;
    blocks_.clear();
    wanted_ = 0;
}

} // namespace bonsai::cuda
