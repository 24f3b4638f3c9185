// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/weights.h"

#include <algorithm>

#include "backends/cuda/context.h"

namespace bonsai::cuda {

Weights::~Weights() {
    for (auto& [host, entry] : entries_)
        free(&entry);
    if (arrived_) cudaEventDestroy(arrived_);
}

void Weights::add(const Tensor& host) {
    Entry& entry = entries_[static_cast<const uint8_t*>(host.data)];
    if (entry.users++ > 0) return;
    entry.host = host;
    entry.file_bytes = static_cast<size_t>(host.rows) * row_bytes(host.dtype, host.cols);
    entry.there = device_weight(host);
}

void Weights::remove(const void* host) {
    const auto found = entries_.find(static_cast<const uint8_t*>(host));
    if (found == entries_.end() || --found->second.users > 0) return;
    free(&found->second);
    entries_.erase(found);
}

Weights::Entries::const_iterator Weights::find(const void* address) const {
    const auto* at = static_cast<const uint8_t*>(address);
    auto next = entries_.upper_bound(at);
    if (next == entries_.begin()) return entries_.end();
    --next;
    return at < next->first + next->second.file_bytes ? next : entries_.end();
}

Status Weights::locate(Tensor* weight) {
    const auto found = find(weight->data);
    if (found == entries_.end()) return Status();
    Entry& entry = entries_.find(found->first)->second;
    const auto offset =
        static_cast<size_t>(static_cast<const uint8_t*>(weight->data) - found->first);
    const size_t row = row_bytes(entry.host.dtype, entry.host.cols);
    const size_t first = offset / row;
    if (weight->cols != entry.host.cols || offset % row != 0 ||
        (entry.there.repack && first % kSlabRows != 0))
        return fail(ErrorCode::kUnsupported,
                    "device cuda:%d takes whole rows of a weight, from a multiple of %d on",
                    memory_.device(), kSlabRows);
    if (!entry.device) BONSAI_TRY(load(&entry));
    entry.idle_since = 0;
    entry.stage = stage_;
    weight->dtype = entry.there.dtype;
    weight->data =
        static_cast<uint8_t*>(entry.device) + first * row_bytes(entry.there.dtype, entry.host.cols);
    return Status();
}

Status Weights::load(Entry* entry) {
    if (frozen_)
        return fail(ErrorCode::kInternal, "a matrix of %zu bytes is missing while recording",
                    entry->file_bytes);
    if (!arrived_)
        BONSAI_TRY(
            check(cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming), "cudaEventCreate"));
    void* device = nullptr;
    BONSAI_TRY(memory_.allocate(entry->there.bytes, "weights", &device, true));
    const Status status = fill(*entry, device);
    if (!status.ok()) {
        memory_.release(device, entry->there.bytes);
        return status;
    }
    entry->device = device;
    return Status();
}

// On a stream of its own, so that the ops queued before do not delay it.
Status Weights::fill(const Entry& entry, void* device) {
    const cudaStream_t stream = memory_.transfers();
    Tensor raw = entry.host;
    raw.data = device;
    if (entry.there.repack)
        BONSAI_TRY(memory_.allocate(entry.file_bytes, "weights on their way", &raw.data, true));
    Status status =
        staging_.upload(raw.data, entry.file_bytes, entry.host.data, entry.file_bytes, 1, stream);
    if (status.ok() && entry.there.repack) status = repack_weight(stream, raw, device);
    if (status.ok()) status = check(cudaEventRecord(arrived_, stream), "upload of weights");
    if (status.ok())
        status = check(cudaStreamWaitEvent(memory_.stream(), arrived_, 0), "upload of weights");
    // What is freed next is freed in the order of the other stream, which now waits for nothing.
    if (!status.ok()) cudaStreamSynchronize(stream);
    if (entry.there.repack) memory_.release(raw.data, entry.file_bytes);
    return status;
}

void Weights::free(Entry* entry) {
    if (!entry->device) return;
    memory_.release(entry->device, entry->there.bytes);
    entry->device = nullptr;
    entry->idle_since = 0;
    ++generation_;
}

void Weights::mark_idle(const void* host) {
    const auto found = find(host);
    if (found == entries_.end()) return;
    Entry& entry = entries_.find(found->first)->second;
    if (entry.device && entry.idle_since == 0) entry.idle_since = ++clock_;
}

void Weights::drop_now(const void* host) {
    const auto found = find(host);
    if (found != entries_.end()) free(&entries_.find(found->first)->second);
}

uint64_t Weights::drop(uint64_t bytes) {
    const auto sooner = [](const Entry& a, const Entry& b) {
        return a.stage != b.stage ? a.stage < b.stage : a.idle_since > b.idle_since;
    };
    uint64_t given = 0;
    while (given < bytes) {
        Entry* next = nullptr;
        for (auto& [host, entry] : entries_)
            if (entry.idle_since > 0 && (!next || sooner(entry, *next))) next = &entry;
        if (!next) break;
        given += next->there.bytes;
        free(next);
    }
    return given;
}

} // namespace bonsai::cuda
