// SPDX-License-Identifier: Apache-2.0
// attention_hopper: out = softmax(scale * q k^T) v on sm_90a, heads of 72 to 128.
// Layout:   q, k, v f16, read through tensor maps, or f32; out f32, or int8 codes with a scale for
//           each row and head, or for two or four heads: then f16 goes to scratch, and a kernel
//           behind makes the codes; row strides. f32 keys and values are first rounded into scratch
//           as tiles of kKeys keys, each the bytes that shared memory wants (see hopper.cuh): k as
//           [2][kKeys][64 dimensions], v transposed as [kKeys / 64][128 dimensions][64 keys].
// Maths:    as attention_mma: f16 operands, f32 sums, softmax in one pass, base 2.
// Work:     a block stays on its multiprocessor and takes tiles of 128 queries of a head: two
//           warpgroups of 64, and one that only starts copies of whole tiles, two stages deep, the
//           next tile's while the last one's result is written. A warpgroup's products with the
//           next keys run while it computes exponentials (Shah et al. 2024, FlashAttention-3).
//           Tiles that would be alone in a last wave are divided along the keys; merge_kernel joins
//           their sums in order.
// Roofline: 4 * Sq * Sk * head_dim flop a head over one read of q, k, v: compute-bound.
#include <algorithm>

#include "backends/cuda/attention.h"
#include "backends/cuda/attention_hopper.cuh"
#include "backends/cuda/tensor_map.h"

namespace bonsai::cuda {

namespace {

constexpr int kTileKeys = 128; // kKeys of all kernels below

struct Operands {
    const float *k, *v;
    int64_t k_stride, v_stride;
    __half *k_out, *v_out;
    int keys, tiles, heads, head_dim;
    int key_blocks; // blocks of threads that write k
};

} // namespace

// 8 dimensions of a key a thread.
template <int kKeys> __device__ __forceinline__ void write_key(const Operands& o, int64_t index) {
    const int piece = static_cast<int>(index % (kDim / 8));
    const int head = static_cast<int>(index / (kDim / 8) % o.heads);
    const int key = static_cast<int>(index / (kDim / 8) / o.heads);
    if (key >= o.tiles * kKeys) return;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (key < o.keys && piece * 8 < o.head_dim) {
        const float* x = o.k + key * o.k_stride + int64_t{head} * o.head_dim + piece * 8;
        packed = make_uint4(pack_clamped(x[0], x[1]), pack_clamped(x[2], x[3]),
                            pack_clamped(x[4], x[5]), pack_clamped(x[6], x[7]));
    }
    const int row = key % kKeys;
    const int64_t tile = int64_t{head} * o.tiles + key / kKeys;
    reinterpret_cast<uint4*>(o.k_out)[tile * (kKeys * kDim / 8) + piece / 8 * (kKeys * 8) +
                                      row * 8 + (piece % 8 ^ row % 8)] = packed;
}

// 16 keys of a dimension a thread.
template <int kKeys> __device__ __forceinline__ void write_value(const Operands& o, int64_t index) {
    const int d = static_cast<int>(index % kDim);
    const int head = static_cast<int>(index / kDim % o.heads);
    const int first = static_cast<int>(index / kDim / o.heads) * 16;
    if (first >= o.tiles * kKeys) return;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const bool inside = first + i < o.keys && d < o.head_dim;
        x[i] = inside ? o.v[(first + i) * o.v_stride + int64_t{head} * o.head_dim + d] : 0.0f;
    }
    const int column = first % kKeys, piece = column % 64 / 8;
    const int64_t tile = int64_t{head} * o.tiles + first / kKeys;
    uint4* to = reinterpret_cast<uint4*>(o.v_out) + tile * (kKeys * kDim / 8) +
                column / 64 * (kDim * 8) + d * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float* y = x + 8 * i;
        to[(piece + i) ^ d % 8] = make_uint4(pack_clamped(y[0], y[1]), pack_clamped(y[2], y[3]),
                                             pack_clamped(y[4], y[5]), pack_clamped(y[6], y[7]));
    }
}

template <int kKeys>
static __global__ void __launch_bounds__(256) operands_kernel(const Operands o) {
    const int block = static_cast<int>(blockIdx.x);
    if (block < o.key_blocks)
        write_key<kKeys>(o, int64_t{block} * 256 + threadIdx.x);
    else
        write_value<kKeys>(o, int64_t{block - o.key_blocks} * 256 + threadIdx.x);
}

// Whether tensor maps can describe the operands: whole heads of f16, rows 16 bytes apart.
static bool mappable(const AttentionArgs& args) {
    if (args.head_dim != kDim || !(args.scale > 0)) return false;
    for (const Tensor& t : {args.q, args.k, args.v})
        if (t.dtype != DType::kF16 || t.stride % 8 != 0 ||
            reinterpret_cast<uintptr_t>(t.data) % 16 != 0)
            return false;
    return true;
}

static Status map_operands(const AttentionArgs& args, int keys, Maps* maps) {
    const auto map = [](const Tensor& t, int box_rows, CUtensorMap* out) {
        return make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, t.data, t.rows, t.cols,
                               t.stride * 2, box_rows, out);
    };
    BONSAI_TRY(map(args.q, 64, &maps->q));
    BONSAI_TRY(map(args.k, keys, &maps->k));
    return map(args.v, keys, &maps->v);
}

template <int kKeys>
static Status round_operands(const Context& context, const AttentionArgs& args, Flash* f) {
    __half *k = nullptr, *v = nullptr;
    const auto halves = static_cast<size_t>(args.kv_heads) * f->tiles * kKeys * kDim;
    BONSAI_TRY(context.scratch->get(halves, &k));
    BONSAI_TRY(context.scratch->get(halves, &v));
    f->k = k, f->v = v;
    Operands o = {};
    o.k = args.k.f32(), o.k_stride = args.k.stride, o.k_out = k;
    o.v = args.v.f32(), o.v_stride = args.v.stride, o.v_out = v;
    o.keys = f->keys, o.tiles = f->tiles, o.heads = args.kv_heads, o.head_dim = args.head_dim;
    o.key_blocks = static_cast<int>((halves / 8 + 255) / 256);
    const auto blocks = static_cast<unsigned>(o.key_blocks + (halves / 16 + 255) / 256);
    operands_kernel<kKeys><<<blocks, 256, 0, context.stream>>>(o);
    return check_launch("attention operands");
}

static int tiles_of(const Flash& f) {
    return (f.queries + kQueries - 1) / kQueries * f.heads;
}

// Tiles that do not fill the multiprocessors once more are cut along the keys, so that they do.
static void split_last(const Context& context, Flash* f) {
    const int tiles = tiles_of(*f), rest = tiles % context.multiprocessors;
    f->whole = f->shares = tiles, f->parts = 1;
    if (f->causal || rest == 0) return;
    const int parts = std::min(context.multiprocessors / rest, f->tiles);
    if (parts < 2) return;
    f->whole = tiles - rest, f->parts = parts, f->shares = f->whole + rest * parts;
}

// Queries of parts.
static size_t part_lines(const Flash& f) {
    return static_cast<size_t>(f.shares - f.whole) * kQueries;
}

// What `args` says without its addresses.
template <int kKeys> static Flash describe(const Context& context, const AttentionArgs& args) {
    Flash f = {};
    f.queries = static_cast<int>(args.q.rows), f.keys = static_cast<int>(args.k.rows);
    f.tiles = (f.keys + kKeys - 1) / kKeys;
    f.head_dim = args.head_dim, f.heads = args.heads, f.shared_by = args.heads / args.kv_heads;
    f.scale = base2_scale(args.scale), f.sign_q = sign_of(args.scale), f.causal = args.causal;
    split_last(context, &f);
    return f;
}

template <int kKeys, bool kDirect, Result kResult>
static Status launch(const Context& context, const Flash& f, const Maps& maps) {
    constexpr int kBytes = Shared<kKeys>::kBytes;
    auto* kernel = flash_kernel<kKeys, kDirect, kResult>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "attention"));
    const int split = tiles_of(f) - f.whole;
    const auto blocks = static_cast<unsigned>(std::min(f.shares, context.multiprocessors));
    kernel<<<blocks, kThreads, kBytes, context.stream>>>(f, maps);
    BONSAI_TRY(check_launch("attention"));
    if constexpr (kResult == Result::kHalves) {
        const int spans = f.queries * ((f.heads + kPieces - 1) / kPieces);
        quantize_heads_kernel<<<static_cast<unsigned>((spans + 7) / 8), 256, 0, context.stream>>>(
            f);
    } else if (split > 0) {
        merge_kernel<kKeys, kResult>
            <<<static_cast<unsigned>(split * kQueries / 8), 256, 0, context.stream>>>(f);
    }
    return check_launch("attention merge");
}

// Once the operands and what is written are known.
template <int kKeys, Result kResult>
static Status run(const Context& context, const AttentionArgs& args, Flash& f) {
    Maps maps = {};
    if (mappable(args)) {
        BONSAI_TRY(map_operands(args, kKeys, &maps));
        f.aligned = f.out_stride % 2 == 0 && reinterpret_cast<uintptr_t>(f.out) % 8 == 0;
        return launch<kKeys, true, kResult>(context, f, maps);
    }
    f.q = args.q.f32(), f.q_stride = args.q.stride;
    f.aligned = f.q_stride % 4 == 0 && f.out_stride % 4 == 0 &&
                reinterpret_cast<uintptr_t>(f.q) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(f.out) % 16 == 0;
    BONSAI_TRY(round_operands<kKeys>(context, args, &f));
    return launch<kKeys, false, kResult>(context, f, maps);
}

template <int kKeys> static Status attend(const Context& context, const AttentionArgs& args) {
    Flash f = describe<kKeys>(context, args);
    if (const size_t lines = part_lines(f); lines > 0) {
        BONSAI_TRY(context.scratch->get(lines * kDim, &f.part_out));
        BONSAI_TRY(context.scratch->get(lines, &f.part_stats));
    }
    const Tensor& out = args.out;
    if (out.dtype != DType::kI8) {
        f.out = out.f32(), f.out_stride = out.stride;
        return run<kKeys, Result::kFloats>(context, args, f);
    }
    f.codes = code_rows(out);
    if (f.codes.share == 1) return run<kKeys, Result::kCodes>(context, args, f);
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(out.rows * out.cols), &f.halves));
    return run<kKeys, Result::kHalves>(context, args, f);
}

bool hopper_takes(const AttentionArgs& args) {
    if (args.head_dim <= 64 || args.head_dim > kDim) return false;
    if (args.out.dtype == DType::kI8 && args.head_dim != kDim) return false; // a head is a group
    return args.q.dtype == DType::kF32 || mappable(args);
}

uint64_t hopper_scratch(const Context& context, const AttentionArgs& args) {
    const Flash f = describe<kTileKeys>(context, args);
    const bool wide = args.out.dtype == DType::kI8 && args.out.scale_group != kGroup;
    const uint64_t halves = wide ? static_cast<uint64_t>(args.out.rows * args.out.cols) : 0;
    const uint64_t rounded =
        mappable(args) ? 0 : uint64_t{2} * args.kv_heads * f.tiles * kTileKeys * kDim;
    return 2 * (halves + rounded) + part_lines(f) * (kDim * sizeof(float) + sizeof(float2));
}

Status attention_hopper(const Context& context, const AttentionArgs& args) {
    return attend<kTileKeys>(context, args);
}

} // namespace bonsai::cuda
