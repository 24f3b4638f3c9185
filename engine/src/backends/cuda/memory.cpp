// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/memory.h"

#include <algorithm>

#include "backends/cuda/context.h"

namespace bonsai::cuda {

namespace {

constexpr uint64_t kGranularity = 512; // what the pool rounds to

unsigned long long megabytes(uint64_t bytes) {
    return (bytes + 999999) / 1000000;
}

} // namespace

Status Memory::create(int device, uint64_t limit, std::shared_ptr<Memory>* out) {
    std::shared_ptr<Memory> memory(new Memory);
    memory->device_ = device;
    memory->limit_ = limit;
    const DeviceScope scope(device);
    int pools = 0;
    BONSAI_TRY(check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device),
                     "cudaDeviceGetAttribute"));
    if (!pools)
        return fail(ErrorCode::kUnsupported,
                    "cuda:%d: its driver has no memory pools; update the driver, or choose "
                    "another device",
                    device);
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    BONSAI_TRY(check(cudaMemPoolCreate(&memory->pool_, &properties), "cudaMemPoolCreate"));
    // Without a limit, what one stage gives back is kept for the next.
    uint64_t keep = limit > 0 ? 0 : UINT64_MAX;
    BONSAI_TRY(check(cudaMemPoolSetAttribute(memory->pool_, cudaMemPoolAttrReleaseThreshold, &keep),
                     "cudaMemPoolSetAttribute"));
    for (cudaStream_t* stream : {&memory->stream_, &memory->transfers_})
        BONSAI_TRY(
            check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate"));
    *out = std::move(memory);
    return Status();
}

Memory::~Memory() {
    const DeviceScope scope(device_);
    for (cudaStream_t stream : {stream_, transfers_}) {
        if (!stream) continue;
        cudaStreamSynchronize(stream);
        cudaStreamDestroy(stream);
    }
    if (pool_) cudaMemPoolDestroy(pool_);
}

uint64_t Memory::held() const {
    uint64_t bytes = 0;
    if (cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &bytes) != cudaSuccess)
        cudaGetLastError();
    return bytes;
}

uint64_t Memory::available() const {
    const DeviceScope scope(device_);
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    return free + held();
}

Status Memory::allocate(size_t bytes, const char* what, void** out, bool for_transfer) {
    const uint64_t rounded = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    if (limit_ > 0 && used_ + rounded > limit_ && reclaimer_) reclaimer_(used_ + rounded - limit_);
    const cudaStream_t stream = for_transfer ? transfers_ : stream_;
    cudaError_t code = cudaMallocFromPoolAsync(out, rounded, pool_, stream);
    while (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        const uint64_t given = reclaimer_ ? reclaimer_(rounded) : 0;
        // Only what has been freed on the device can be taken again.
        cudaStreamSynchronize(stream_);
        cudaMemPoolTrimTo(pool_, 0);
        code = cudaMallocFromPoolAsync(out, rounded, pool_, stream);
        if (given == 0) break;
    }
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        return fail(ErrorCode::kMemory,
                    "cuda:%d: no memory for %llu MB of %s: %llu MB are in use here and %llu of "
                    "%llu MB are free; draw a smaller picture, set --max-memory, or close other "
                    "programs",
                    device_, megabytes(rounded), what, megabytes(used_), megabytes(free),
                    megabytes(total));
    }
    BONSAI_TRY(check(code, "cudaMallocFromPoolAsync"));
    used_ += rounded;
    peak_ = std::max(peak_, used_);
    return Status();
}

void Memory::release(void* data, size_t bytes) {
    if (!data) return;
    const DeviceScope scope(device_);
    if (cudaFreeAsync(data, stream_) != cudaSuccess) cudaGetLastError();
    used_ -= (bytes + kGranularity - 1) / kGranularity * kGranularity;
}

} // namespace bonsai::cuda
