// SPDX-License-Identifier: Apache-2.0
// The AMX instructions that the kernels use, in plain code (test_emulated.cpp), under the names of
// the intrinsics.
#pragma once

#include <cstddef>

namespace emulated {

void load_config(const void* memory);
void release();
void zero(int t);
void load(int t, const void* base, size_t stride);
void store(int t, void* base, size_t stride);
void multiply_signed(int c, int a, int b);
void multiply_bf16(int c, int a, int b);

} // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(memory) ::emulated::load_config(memory)
#define _tile_release() ::emulated::release()
#define _tile_zero(t) ::emulated::zero(t)
#define _tile_loadd(t, base, stride) ::emulated::load(t, base, stride)
#define _tile_stream_loadd(t, base, stride) ::emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) ::emulated::store(t, base, stride)
#define _tile_dpbssd(c, a, b) ::emulated::multiply_signed(c, a, b)
#define _tile_dpbf16ps(c, a, b) ::emulated::multiply_bf16(c, a, b)
