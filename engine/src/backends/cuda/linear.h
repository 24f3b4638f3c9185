// SPDX-License-Identifier: Apache-2.0
// What the kernels of `linear` share. M tokens (rows of x), N output features (rows of W), K.
#pragma once

#include <iterator>

#include "backends/cuda/kernels.h"
#include "backends/cuda/weight_layout.h"

namespace bonsai::cuda {

// One projection as a kernel sees it.
struct Part {
    const uint8_t* weight;
    int rows;       // N
    int first_tile; // in the launch's tiles of W rows
    void* out;      // f32, or f16 where `half`
    int64_t out_stride;
    const float* bias; // or null
    const float* gate; // or null
    bool accumulate;
    bool half;
};
// Projections of one weight type, run by one launch.
struct Parts {
    Part part[3];
    int count = 0;
    int tiles = 0; // of W rows, all parts together
    DType dtype = DType::kF32;
};
// The projections of `args` whose index is in `mask`, all of one type, in tiles of `tile_rows`.
Parts make_parts(const LinearArgs& args, unsigned mask, int tile_rows);

// int8 x with block-quantised W. tokens: the width of a tile, 64 or 128; 0 for the better.
Status linear_int8(const Context& context, const QuantizedRows& x, const LinearArgs& args,
                   unsigned mask, int tokens = 0);
// The same for folded low-bit W (weight_layout.h) on compute capability 9.0, in wgmma. tile: an
// index into kHopperTiles; -1 for the one that leaves the fewest multiprocessors idle.
struct HopperTileSize {
    int consumers, features, tokens;
    int batch; // products that a consumer queues at a time
};
constexpr HopperTileSize kHopperTiles[] = {
    {2, 128, 128, 4}, {2, 128, 144, 4}, {2, 128, 160, 4}, {2, 128, 176, 4}, {2, 128, 192, 2}};
constexpr int kHopperTileCount = static_cast<int>(std::size(kHopperTiles));
bool linear_hopper_serves(const Context& context, DType dtype);
// The projections of `args` in `mask`, of one type.
struct HopperProduct {
    QuantizedRows x;
    const LinearArgs* args;
    unsigned mask;
};
// One or two products in one launch; of two, K, x.group and the weights' type are the same.
Status linear_hopper(const Context& context, const HopperProduct* products, int count,
                     int tile = -1);
// f32 x with any W.
Status linear_exact(const Context& context, const LinearArgs& args, unsigned mask);
uint64_t exact_scratch(const Context& context, const LinearArgs& args, unsigned mask); // bytes
// The same for at most kGemvRows tokens.
constexpr int kGemvRows = 4;
Status linear_gemv(const Context& context, const LinearArgs& args, unsigned mask);

} // namespace bonsai::cuda
