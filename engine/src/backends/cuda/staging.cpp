// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "backends/cuda/context.h"

namespace bonsai::cuda {

namespace {

constexpr size_t kHalf = size_t{8} << 20;
constexpr size_t kCopy = size_t{512} << 10; // bytes a thread copies at a time
constexpr int kThreads = 4;

} // namespace

Status Staging::create(int threads, std::unique_ptr<Staging>* out) {
    std::unique_ptr<Staging> staging(new Staging);
    const int wanted = threads > 0 ? threads : default_thread_count();
    BONSAI_TRY(ThreadPool::create(std::min(wanted, kThreads), false, &staging->threads_));
    for (Half& half : staging->halves_) {
        void* data = nullptr;
        const cudaError_t code = cudaHostAlloc(&data, kHalf, cudaHostAllocDefault);
        BONSAI_TRY(check(code, "cudaHostAlloc"));
        half.data = static_cast<uint8_t*>(data);
        BONSAI_TRY(
            check(cudaEventCreateWithFlags(&half.free, cudaEventDisableTiming), "cudaEventCreate"));
    }
    *out = std::move(staging);
    return Status();
}

Staging::~Staging() {
    for (const Half& half : halves_) {
        if (half.free) {
            cudaEventSynchronize(half.free);
            cudaEventDestroy(half.free);
        }
        if (half.data) cudaFreeHost(half.data);
    }
}

Status Staging::copy(void* to, const void* from, size_t bytes) {
    if (bytes <= kCopy) {
        std::memcpy(to, from, bytes);
        return Status();
    }
    const auto pieces = static_cast<int64_t>((bytes + kCopy - 1) / kCopy);
    return threads_->parallel_for(pieces, [&](int64_t i, int) {
        const size_t begin = static_cast<size_t>(i) * kCopy;
        std::memcpy(static_cast<uint8_t*>(to) + begin, static_cast<const uint8_t*>(from) + begin,
                    std::min(kCopy, bytes - begin));
    });
}

Status Staging::upload(void* device, size_t stride, const void* host, size_t row, size_t rows,
                       cudaStream_t stream) {
    if (stride == row) { // one long row, cut anywhere
        rows *= row;
        row = stride = 1;
    }
    const size_t at_once = std::max<size_t>(1, kHalf / row);
    if (row > kHalf)
        return fail(ErrorCode::kUnsupported, "rows of %zu bytes are too long for a column slice",
                    row);
    for (size_t first = 0; first < rows; first += at_once) {
        const size_t count = std::min(at_once, rows - first);
        Half& half = halves_[next_];
        next_ ^= 1;
        BONSAI_TRY(check(cudaEventSynchronize(half.free), "upload"));
        BONSAI_TRY(copy(half.data, static_cast<const uint8_t*>(host) + first * row, count * row));
        uint8_t* to = static_cast<uint8_t*>(device) + first * stride;
        BONSAI_TRY(check(row == 1
                             ? cudaMemcpyAsync(to, half.data, count, cudaMemcpyHostToDevice, stream)
                             : cudaMemcpy2DAsync(to, stride, half.data, row, row, count,
                                                 cudaMemcpyHostToDevice, stream),
                         "upload"));
        BONSAI_TRY(check(cudaEventRecord(half.free, stream), "upload"));
    }
    return Status();
}

Status Staging::download(void* host, size_t row, size_t rows, const void* device, size_t stride,
                         cudaStream_t stream) {
    if (stride == row) {
        rows *= row;
        row = stride = 1;
    }
    if (row > kHalf)
        return fail(ErrorCode::kUnsupported, "rows of %zu bytes are too long for a column slice",
                    row);
    const size_t at_once = std::max<size_t>(1, kHalf / row);
    struct Piece {
        Half* half;
        size_t first, count;
    };
    Piece before{nullptr, 0, 0};
    const auto collect = [&](const Piece& piece) {
        if (!piece.half) return Status();
        BONSAI_TRY(check(cudaEventSynchronize(piece.half->free), "download"));
        return copy(static_cast<uint8_t*>(host) + piece.first * row, piece.half->data,
                    piece.count * row);
    };
    for (size_t first = 0; first < rows; first += at_once) {
        const Piece piece{&halves_[next_], first, std::min(at_once, rows - first)};
        next_ ^= 1;
        BONSAI_TRY(check(cudaEventSynchronize(piece.half->free), "download"));
        const uint8_t* from = static_cast<const uint8_t*>(device) + first * stride;
        BONSAI_TRY(check(row == 1 ? cudaMemcpyAsync(piece.half->data, from, piece.count,
                                                    cudaMemcpyDeviceToHost, stream)
                                  : cudaMemcpy2DAsync(piece.half->data, row, from, stride, row,
                                                      piece.count, cudaMemcpyDeviceToHost, stream),
                         "download"));
        BONSAI_TRY(check(cudaEventRecord(piece.half->free, stream), "download"));
        BONSAI_TRY(collect(before));
        before = piece;
    }
    return collect(before);
}

} // namespace bonsai::cuda
