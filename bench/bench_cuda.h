// SPDX-License-Identifier: Apache-2.0
// What the measurements of CUDA kernels share: a device with its scratch memory, random numbers,
// times by events.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "backends/cuda/devices.h"
#include "backends/cuda/memory.h"

namespace cuda_bench {

using namespace bonsai;
using namespace bonsai::cuda;

inline void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
}
inline void require(cudaError_t code, const char* what) {
    require(check(code, what));
}

// Device 0.
struct Bench {
    std::shared_ptr<Memory> memory;
    std::unique_ptr<Scratch> scratch;
    DeviceInfo info;
    Context context;
    int repeats = 20; // or the program's first argument
    uint64_t random = 7;

    Bench(int argc, char** argv) {
        if (argc > 1) repeats = std::max(1, std::atoi(argv[1]));
        require(describe(0, &info, &context));
        require(Memory::create(0, 0, &memory));
        scratch = std::make_unique<Scratch>(*memory);
        context.scratch = scratch.get();
        context.stream = memory->stream();
    }

    uint64_t bits() {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random;
    }

    // Median milliseconds of what `body` queues.
    double median(const std::function<void()>& body) {
        cudaEvent_t begin, end;
        require(cudaEventCreate(&begin), "event");
        require(cudaEventCreate(&end), "event");
        std::vector<float> times;
        for (int i = -3; i < repeats; ++i) {
            require(cudaEventRecord(begin, context.stream), "event");
            body();
            require(cudaEventRecord(end, context.stream), "event");
            require(cudaEventSynchronize(end), "event");
            float ms = 0;
            require(cudaEventElapsedTime(&ms, begin, end), "event");
            if (i >= 0) times.push_back(ms);
        }
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
        std::sort(times.begin(), times.end());
        return static_cast<double>(times[times.size() / 2]);
    }
};

} // namespace cuda_bench
