// SPDX-License-Identifier: Apache-2.0
// The noise of torch.randn with torch.Generator("cpu").manual_seed(seed), bit for bit as on x86-64
// with AVX2, on any machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bonsai {

// Fills out[0 .. count) with standard normals; count >= 16. Only the low 32 bits of the seed count,
// as in torch.
void torch_cpu_randn(uint64_t seed, float* out, size_t count);

} // namespace bonsai
