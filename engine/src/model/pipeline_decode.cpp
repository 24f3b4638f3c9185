// SPDX-License-Identifier: Apache-2.0
// The last stage of the pipeline: latents to pixels, whole or, when memory asks for it, in
// overlapping tiles.
#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "model/monitor.h"

namespace bonsai {

namespace {

// In transformer tokens (16 pixels). Tiles see other group statistics than the whole picture, so
// they overlap widely and fade.
constexpr int64_t kTileSides[] = {64, 48, 32, 24, 16};
constexpr int64_t kTileOverlap = 8;

// Start of each tile along one side.
std::vector<int64_t> tile_starts(int64_t length, int64_t tile) {
    std::vector<int64_t> starts;
    for (int64_t at = 0;; at += tile - kTileOverlap) {
        starts.push_back(std::max<int64_t>(0, std::min(at, length - tile)));
        if (at + tile >= length) return starts;
    }
}

// Weight of pixel i of a tile of `size` pixels: rises over the overlap from either edge.
float fade(int64_t i, int64_t size, int64_t overlap) {
    const int64_t from_edge = std::min(i, size - 1 - i);
    return static_cast<float>(std::min(from_edge + 1, overlap)) / static_cast<float>(overlap);
}

// From [-1, 1], halves to even as numpy rounds. Behind a sum of 1.5 * 2^23 and a number below 256
// the low byte is the number rounded; unlike std::nearbyint, compilers make vectors of it.
uint8_t to_byte(float pixel) {
    const float value = std::min(1.0f, std::max(0.0f, pixel / 2.0f + 0.5f));
    return static_cast<uint8_t>(f32_bits(value * 255.0f + 12582912.0f));
}

} // namespace

Status Pipeline::decode_piece(const float* tokens, int64_t height, int64_t width, const Run& run,
                              std::vector<float>* pixels) const {
    std::vector<float> unpacked(static_cast<size_t>(height * width * config_.transformer.channels));
    vae_.unpack_tokens(tokens, height, width, unpacked.data());
    Tensor latents, out;
    BONSAI_TRY(run.arena.allocate(4 * height * width, config_.vae.latent_channels, &latents));
    BONSAI_TRY(run.arena.allocate(height * width * kSizeMultiple * kSizeMultiple, 3, &out));
    BONSAI_TRY(run.backend.write(latents, unpacked.data()));
    BONSAI_TRY(run.show("latents_unpatchified", latents));
    BONSAI_TRY(vae_.decode(run, latents, 2 * height, 2 * width, out));
    BONSAI_TRY(run.show("vae_out", out));
    pixels->resize(static_cast<size_t>(out.rows * 3));
    BONSAI_TRY(run.backend.read(out, pixels->data()));
    run.arena.release(&latents);
    run.arena.release(&out);
    return Status();
}

Status Pipeline::decode_tiles(const std::vector<float>& latents, int64_t height, int64_t width,
                              int64_t tile, Monitor& monitor, std::vector<float>* pixels) {
    const int64_t tile_h = std::min(tile, height), tile_w = std::min(tile, width),
                  channels = config_.transformer.channels;
    const std::vector<int64_t> tops = tile_starts(height, tile_h),
                               lefts = tile_starts(width, tile_w);
    const int64_t picture_w = width * kSizeMultiple, piece_h = tile_h * kSizeMultiple,
                  piece_w = tile_w * kSizeMultiple;
    pixels->assign(static_cast<size_t>(height * width * kSizeMultiple * kSizeMultiple * 3), 0.0f);
    std::vector<float> weights(pixels->size() / 3, 0.0f), piece,
        tokens(static_cast<size_t>(tile_h * tile_w * channels));
    StagePlan plan;
    BONSAI_TRY(plan_decode(tile_h, tile_w, &plan));
    std::unique_ptr<Arena> arena;
    BONSAI_TRY(borrow_arena(plan.arena, &arena));
    monitor.arena = std::max<uint64_t>(monitor.arena, plan.arena);
    const double count = static_cast<double>(tops.size() * lefts.size());
    double done = 0;
    const Run run{*backend_, *arena,
                  [&](double fraction) { return monitor.tick((done + fraction) / count); },
                  nullptr};
    for (const int64_t top : tops) {
        for (const int64_t left : lefts) {
            for (int64_t y = 0; y < tile_h; ++y)
                std::copy_n(&latents[static_cast<size_t>(((top + y) * width + left) * channels)],
                            tile_w * channels, &tokens[static_cast<size_t>(y * tile_w * channels)]);
            BONSAI_TRY(decode_piece(tokens.data(), tile_h, tile_w, run, &piece));
            for (int64_t y = 0; y < piece_h; ++y) {
                for (int64_t x = 0; x < piece_w; ++x) {
                    const float weight = fade(y, piece_h, kTileOverlap * kSizeMultiple) *
                                         fade(x, piece_w, kTileOverlap * kSizeMultiple);
                    const auto at = static_cast<size_t>((top * kSizeMultiple + y) * picture_w +
                                                        left * kSizeMultiple + x);
                    weights[at] += weight;
                    for (size_t c = 0; c < 3; ++c)
                        (*pixels)[3 * at + c] +=
                            weight * piece[static_cast<size_t>(3 * (y * piece_w + x)) + c];
                }
            }
            done += 1;
        }
    }
    for (size_t i = 0; i < pixels->size(); ++i)
        (*pixels)[i] /= weights[i / 3];
    return Status();
}

Status Pipeline::decode(const std::vector<float>& latents, int64_t height, int64_t width,
                        Monitor& monitor, bool* tiled, std::vector<uint8_t>* rgb) {
    const int64_t tile = choose_tile(height, width, memory_limit());
    *tiled = tile > 0;
    std::vector<float> pixels;
    BONSAI_TRY(monitor.tick(0));
    if (*tiled) {
        BONSAI_TRY(decode_tiles(latents, height, width, tile, monitor, &pixels));
    } else {
        StagePlan plan;
        BONSAI_TRY(plan_decode(height, width, &plan));
        std::unique_ptr<Arena> arena;
        BONSAI_TRY(borrow_arena(plan.arena, &arena));
        monitor.arena = std::max<uint64_t>(monitor.arena, plan.arena);
        Run run{*backend_, *arena, [&](double fraction) { return monitor.tick(fraction); },
                nullptr};
        const auto& probe = monitor.request.probe;
        if (probe && monitor.image == 0)
            run.probe = [&](const std::string& name, const Tensor& value) {
                return probe(name, value, *backend_);
            };
        BONSAI_TRY(decode_piece(latents.data(), height, width, run, &pixels));
    }
    BONSAI_TRY(check_numbers(pixels.data(), pixels.size(), BONSAI_STAGE_VAE, ""));
    rgb->resize(pixels.size());
    for (size_t i = 0; i < pixels.size(); ++i)
        (*rgb)[i] = to_byte(pixels[i]);
    return monitor.preview ? Status() : check_picture(latents, pixels, *rgb);
}

// All that decoding a picture takes beside the weights: arena and scratch of the whole or of one
// tile (tile > 0), and the float and byte pictures on the host.
Status Pipeline::plan_picture(int64_t height, int64_t width, int64_t tile, uint64_t* bytes) const {
    const int64_t rows = tile ? std::min(tile, height) : height;
    const int64_t cols = tile ? std::min(tile, width) : width;
    StagePlan plan;
    BONSAI_TRY(plan_decode(rows, cols, &plan));
    const auto pixels = [](int64_t h, int64_t w) {
        return static_cast<uint64_t>(h * w * kSizeMultiple * kSizeMultiple);
    };
    *bytes = plan.total() + pixels(height, width) * (3 * sizeof(float) + 3);
    if (tile) // the sum of weights of each pixel, and the tile's own pixels
        *bytes += pixels(height, width) * sizeof(float) + pixels(rows, cols) * 3 * sizeof(float);
    return Status();
}

// Side of the largest tile that stays below the limit; 0: the whole picture does, or the limit is
// not known.
int64_t Pipeline::choose_tile(int64_t height, int64_t width, uint64_t limit) const {
    const auto fits = [&](int64_t tile) {
        uint64_t bytes = 0;
        return plan_picture(height, width, tile, &bytes).ok() &&
               vae_.weights().bytes + bytes <= limit;
    };
    if (limit == 0 || fits(0)) return 0;
    int64_t smallest = 0;
    for (const int64_t side : kTileSides) {
        if (side >= std::max(height, width)) continue;
        smallest = side;
        if (fits(side)) break;
    }
    return smallest;
}

} // namespace bonsai
