// SPDX-License-Identifier: Apache-2.0
#include "backends/arena.h"

#include <algorithm>

namespace bonsai {

namespace {

constexpr size_t kAlignment = 64;

size_t rounded(size_t bytes) {
    return (bytes + kAlignment - 1) & ~(kAlignment - 1);
}

} // namespace

Status Arena::create(Backend& backend, size_t bytes, std::unique_ptr<Arena>* out) {
    std::unique_ptr<Buffer> buffer;
    BONSAI_TRY(backend.allocate(std::max(bytes, kAlignment), &buffer));
    return create(backend, std::move(buffer), out);
}

Status Arena::create(Backend& backend, std::shared_ptr<Buffer> buffer,
                     std::unique_ptr<Arena>* out) {
    std::unique_ptr<Arena> arena(new Arena);
    arena->buffer_ = std::move(buffer);
    arena->backend_ = &backend;
    arena->base_ = reinterpret_cast<uintptr_t>(arena->buffer_->data());
    *out = std::move(arena);
    return Status();
}

Arena::~Arena() {
    if (backend_) backend_->release_scratch();
}

std::unique_ptr<Arena> Arena::trial() const {
    auto arena = std::make_unique<Arena>();
    arena->base_ = base_;
    arena->used_ = used_;
    return arena;
}

Status Arena::allocate(int64_t rows, int64_t cols, DType dtype, Tensor* out, int scale_group) {
    const bool codes = dtype == DType::kI8;
    const size_t elements =
        rounded(static_cast<size_t>(rows + (codes ? kSpareRows : 0)) * row_bytes(dtype, cols));
    const int64_t scale_stride = codes ? scale_stride_of(rows) : 0;
    const size_t bytes =
        elements + rounded(static_cast<size_t>(scale_groups(cols, scale_group) * scale_stride) *
                           sizeof(float));
    size_t begin = 0;
    auto place = used_.begin();
    while (place != used_.end() && place->begin - begin < bytes) {
        begin = place->end;
        ++place;
    }
    if (buffer_ && (bytes > buffer_->size() || begin > buffer_->size() - bytes))
        return fail(ErrorCode::kInternal, "arena: %zu bytes at %zu do not fit into the planned %zu",
                    bytes, begin, buffer_->size());
    used_.insert(place, Block{begin, begin + bytes});
    peak_ = std::max(peak_, used_.back().end);
    *out = Tensor{dtype, rows, cols, cols, reinterpret_cast<void*>(base_ + begin)};
    if (codes) {
        out->scales = reinterpret_cast<float*>(base_ + begin + elements);
        out->scale_stride = scale_stride;
        out->scale_group = scale_group;
    }
    return Status();
}

void Arena::release(Tensor* tensor) {
    const size_t begin = reinterpret_cast<uintptr_t>(tensor->data) - base_;
    const auto block =
        std::find_if(used_.begin(), used_.end(), [&](const Block& b) { return b.begin == begin; });
    if (block != used_.end()) used_.erase(block);
    *tensor = Tensor();
}

} // namespace bonsai
