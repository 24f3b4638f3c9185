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
    for (const bool folded : {false, true})
        entry.places[folded].there = device_weight(host, folded);
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

Status Weights::locate(Tensor* weight, bool folded) {
    const auto found = find(weight->data);
    if (found == entries_.end()) return Status();
    Entry& entry = entries_.find(found->first)->second;
    Place& place = entry.places[folded && entry.places[1].there.folded];
    const auto offset =
        static_cast<size_t>(static_cast<const uint8_t*>(weight->data) - found->first);
    const size_t row = row_bytes(entry.host.dtype, entry.host.cols);
    const size_t first = offset / row;
    if (weight->cols != entry.host.cols || offset % row != 0 ||
        (place.there.repack && first % kSlabRows != 0))
        return fail(ErrorCode::kUnsupported,
                    "device cuda:%d takes whole rows of a weight, from a multiple of %d on",
                    memory_.device(), kSlabRows);
    if (!place.device) BONSAI_TRY(load(entry, &place));
    entry.idle_since = 0;
    entry.stage = stage_;
    weight->dtype = place.there.dtype;
    weight->data = static_cast<uint8_t*>(place.device) + first * place.there.row_bytes;
    return Status();
}

Status Weights::load(const Entry& entry, Place* place) {
    if (frozen_)
        return fail(ErrorCode::kInternal, "a matrix of %zu bytes is missing while recording",
                    entry.file_bytes);
    if (!arrived_)
        BONSAI_TRY(
            check(cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming), "cudaEventCreate"));
    void* device = nullptr;
    BONSAI_TRY(memory_.allocate(place->there.bytes, "weights", &device, true));
    const Status status = fill(entry, place->there, device);
    if (!status.ok()) {
        memory_.release(device, place->there.bytes);
        return status;
    }
    place->device = device;
    return Status();
}

// On a stream of its own, so that the ops queued before do not delay it.
Status Weights::fill(const Entry& entry, const DeviceWeight& there, void* device) {
    const cudaStream_t stream = memory_.transfers();
    Tensor raw = entry.host;
    raw.data = device;
    if (there.repack)
        BONSAI_TRY(memory_.allocate(entry.file_bytes, "weights on their way", &raw.data, true));
    Status status =
        staging_.upload(raw.data, entry.file_bytes, entry.host.data, entry.file_bytes, 1, stream);
    if (status.ok() && there.repack) status = repack_weight(stream, raw, device, there.folded);
    if (status.ok()) status = check(cudaEventRecord(arrived_, stream), "upload of weights");
    if (status.ok())
        status = check(cudaStreamWaitEvent(memory_.stream(), arrived_, 0), "upload of weights");
    // What is freed next is freed in the order of the other stream, which now waits for nothing.
    if (!status.ok()) cudaStreamSynchronize(stream);
    if (there.repack) memory_.release(raw.data, entry.file_bytes);
    return status;
}

size_t Weights::free(Entry* entry) {
    size_t bytes = 0;
    for (Place& place : entry->places) {
        if (!place.device) continue;
        memory_.release(place.device, place.there.bytes);
        place.device = nullptr;
        bytes += place.there.bytes;
    }
    entry->idle_since = 0;
    if (bytes > 0) ++generation_;
    return bytes;
}

void Weights::mark_idle(const void* host) {
    const auto found = find(host);
    if (found == entries_.end()) return;
    Entry& entry = entries_.find(found->first)->second;
    if (entry.loaded() && entry.idle_since == 0) entry.idle_since = ++clock_;
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
        given += free(next);
    }
    return given;
}

} // namespace bonsai::cuda
