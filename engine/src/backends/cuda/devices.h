// SPDX-License-Identifier: Apache-2.0
// The CUDA devices of this machine that this build has code for.
#pragma once

#include "backends/cuda/context.h"

namespace bonsai::cuda {

// Every usable device, in the order of the driver. Where there is none, `*why` says so: no driver,
// one that is too old, no device, or none that this build has code for.
std::vector<DeviceInfo> devices(std::string* why);

// What launchers want to know of a device; fails when the device is not usable.
Status describe(int device, DeviceInfo* info, Context* context);

} // namespace bonsai::cuda
