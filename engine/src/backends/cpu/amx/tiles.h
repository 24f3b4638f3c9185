// SPDX-License-Identifier: Apache-2.0
// What the AMX kernels share. All eight tiles have 16 rows of 64 bytes unless a kernel says
// otherwise; it configures them when it begins and releases them when it ends. Only for files under
// amx/; everything here is static, so that no AMX code can reach other objects through the linker.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#ifdef BONSAI_TILES_HEADER
#include BONSAI_TILES_HEADER // the tile instructions, emulated for tests
#endif

#include "backends/cpu/compiler.h"

namespace bonsai::cpu::amx {
namespace {

constexpr int kEdge = 16; // rows of a tile; also columns of 32 bits

// As the instruction ldtilecfg reads it.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {kEdge, kEdge, kEdge, kEdge, kEdge, kEdge, kEdge, kEdge};
};
static_assert(sizeof(TileShapes) == 64, "size of a tile configuration");

// The tiles of this thread, as long as it lives.
class Tiles {
  public:
    explicit Tiles(const TileShapes& shapes = TileShapes()) {
#if defined(__GNUC__)
        // The intrinsic names 8 of the 64 bytes that it reads: the others count as never used.
        __asm__ volatile("" ::"r"(&shapes) : "memory");
#endif
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// The tile intrinsics do not tell every compiler that they read memory.
BONSAI_ALWAYS_INLINE void finish_stores() {
#if defined(__GNUC__)
    __asm__ volatile("" ::: "memory");
#else
    _ReadWriteBarrier();
#endif
}

// A value that the compiler shall keep in a register.
#if defined(__GNUC__)
#define BONSAI_KEEP_512(value) __asm__("" : "+v"(value))
#else
#define BONSAI_KEEP_512(value)
#endif

} // namespace
} // namespace bonsai::cpu::amx
