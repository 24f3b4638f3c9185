// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/devices.h"

#include "backends/cuda/kernels.h"
#include "backends/cuda/memory.h"

namespace bonsai::cuda {

namespace {

constexpr int kLeastCapability = 75;

std::string version_text(int version) {
    return format("%d.%d", version / 1000, version % 1000 / 10);
}

// How many devices the driver shows; 0 with a reason.
int count_devices(std::string* why) {
    int count = 0, driver = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0) return count;
    cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    cudaGetLastError();
    if (driver == 0)
        *why = "no driver for CUDA is installed";
    else if (code == cudaErrorInsufficientDriver)
        *why = format("the driver offers CUDA %s, and %s is needed: update it",
                      version_text(driver).c_str(), version_text(CUDART_VERSION).c_str());
    else if (code == cudaErrorNoDevice || code == cudaSuccess)
        *why = "the driver finds no device";
    else
        *why = format("the driver answers: %s", cudaGetErrorString(code));
    return 0;
}

} // namespace

Status describe(int device, DeviceInfo* info, Context* context) {
    cudaDeviceProp properties{};
    BONSAI_TRY(check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
    const int capability = 10 * properties.major + properties.minor;
    if (capability < kLeastCapability)
        return fail(ErrorCode::kUnsupported,
                    "cuda:%d (%s) has compute capability %d.%d, and 7.5 is the least", device,
                    properties.name, properties.major, properties.minor);
    const DeviceScope scope(device);
    const Status code = check_code();
    if (!code.ok())
        return fail(ErrorCode::kUnsupported,
                    "cuda:%d (%s): this build holds no code for compute capability %d.%d (%s)",
                    device, properties.name, properties.major, properties.minor,
                    code.message().c_str());
    context->device = device;
    context->capability = capability;
    context->multiprocessors = properties.multiProcessorCount;
    context->shared_memory = properties.sharedMemPerBlockOptin;
    info->id = format("cuda:%d", device);
    info->name = properties.name;
    info->features = format("sm_%d", capability);
    info->memory_total = properties.totalGlobalMem;
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    info->memory_free = free;
    return Status();
}

std::vector<DeviceInfo> devices(std::string* why) {
    std::vector<DeviceInfo> found;
    const int count = count_devices(why);
    for (int i = 0; i < count; ++i) {
        DeviceInfo info;
        Context context;
        const Status status = describe(i, &info, &context);
        if (status.ok())
            found.push_back(info);
        else
            *why += (why->empty() ? "" : "; ") + status.message();
    }
    return found;
}

} // namespace bonsai::cuda
