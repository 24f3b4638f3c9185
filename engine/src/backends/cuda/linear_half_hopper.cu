// SPDX-License-Identifier: Apache-2.0
// linear_half: y[M,N] = x[M,K] W[N,K]^T in 16-bit floats with f32 sums, wgmma (sm_90a)
// Layout:   x in one or two terms (linear_half_rows.cu), W as it lies in memory. The copy engine
//           brings both to shared memory: x swizzled, as the B operand; W packed, or its rows of
//           floats, from which a lane takes its share of the A operand (half_operands.cuh).
// Maths:    one term each: x and w are rounded to 2^-11, y to 2^-10 of |x| |W| (L2: 4e-4).
//           Exact: high high + high low, and low high where w has two terms: 2^-21 of |x| |W| in
//           f16, 2^-16 for F32 and BF16, whose range only bf16 has; what sums of K terms in f32
//           lose comes on top. K % 128 = 0.
// Work:     a block stays on its multiprocessor and takes tiles of 256 features x 128 tokens, two
//           warpgroups half of the features each; a third feeds stages of K = 128 (64 of floats).
//           The operands of the next 16 or 32 columns are made while the tensor cores work on
//           these. Tiles that would be a last wave are cut along K so that they fill it, and a
//           second kernel adds what the cuts leave, in the order of K.
// Roofline: tensor cores, 2 M N K operations a product of terms at 2048 multiply-adds a cycle and
//           multiprocessor. Beside them a pair of weights costs some 4 issue slots, 25 % of the
//           time of one product.
#include "backends/cuda/linear_half.h"
#include "backends/cuda/linear_half_hopper.cuh"
#include "backends/cuda/tensor_map.h"

namespace bonsai::cuda {
namespace {

using namespace half;

constexpr int kThreads = 384; // two consumers and the producer
constexpr int kPieces = 4;    // of a thread's tokens, for add_kernel
constexpr int kMaxSplits = 16;

template <DType kType, bool kExact>
__global__ void __launch_bounds__(kThreads, 1)
    half_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Work work) {
#if defined(BONSAI_SM90A)
    using S = Shape<kType, kExact>;
    extern __shared__ uint8_t shared[];
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
    const Ring<S> ring(base);
    if (threadIdx.x == 0) ring.init(8); // warps of the consumers
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 2) {
        registers_shrink<24>();
        if (threadIdx.x < 256 + 32) produce<kType, kExact>(work, maps, base);
    } else {
        registers_grow<240>();
        Consumer<kType, kExact> consumer(work, base, group);
        consumer.run();
    }
#endif
}

// Sums of cut tiles: a warp a slab and a piece of its tokens.
__global__ void __launch_bounds__(256) add_kernel(const __grid_constant__ Work work) {
    constexpr int kCount = kSums / 4 / kPieces;
    const int lane = threadIdx.x & 31,
              index = static_cast<int>(blockIdx.x) * 8 + (threadIdx.x >> 5);
    const int piece = index % kPieces, slab = index / kPieces % kTileSlabs;
    const int cut = index / kPieces / kTileSlabs;
    const float4* from = reinterpret_cast<const float4*>(work.partial) +
                         int64_t{cut} * work.splits * (kTileRows * kTileTokens / 4) +
                         (slab * (kSums / 4) + piece * kCount) * 32 + lane;
    float sum[kCount][4] = {};
    for (int s = 0; s < work.splits; ++s, from += kTileRows * kTileTokens / 4)
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const float4 v = __ldcg(from + 32 * j);
            sum[j][0] += v.x, sum[j][1] += v.y, sum[j][2] += v.z, sum[j][3] += v.w;
        }
    store_rows<kCount>(work, work.whole + cut, slab, piece * kCount, lane,
                       [&](int j, int h, int e) { return sum[j][2 * h + e]; });
}

// Tiles, and those cut along K that would be a last wave of few.
Work plan_work(const Context& context, const LinearArgs& args, unsigned mask) {
    Work work = {};
    work.parts = make_parts(args, mask, kTileRows);
    work.rows = args.x.rows;
    work.stages = static_cast<int>(args.x.cols / stage_inputs(work.parts.dtype));
    work.token_tiles = static_cast<int>((work.rows + kTileTokens - 1) / kTileTokens);
    work.tiles = work.whole = work.parts.tiles * work.token_tiles;
    work.splits = 1;
    const int rest = work.tiles % context.multiprocessors;
    if (rest != 0)
        work.splits =
            std::max(1, std::min({context.multiprocessors / rest, kMaxSplits, work.stages / 2}));
    if (work.splits > 1) work.whole = work.tiles - rest;
    work.units = work.whole + (work.tiles - work.whole) * work.splits;
    return work;
}

// Floats that the pieces of cut tiles leave.
size_t partial_count(const Work& work) {
    return static_cast<size_t>(work.units - work.whole) * kTileRows * kTileTokens;
}

template <DType kType, bool kExact>
Status launch(const Context& context, const HalfRows& x, Work* work) {
    using S = Shape<kType, kExact>;
    Maps maps = {};
    const auto type =
        S::kBrain ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    for (int t = 0; t < S::kTermsX; ++t)
        BONSAI_TRY(make_tensor_map(type, t == 0 ? x.high : x.low, x.rows, x.cols, 2 * x.cols,
                                   kTileTokens, &maps.x[t]));
    if constexpr (S::kFloat)
        for (int i = 0; i < work->parts.count; ++i) {
            const Part& part = work->parts.part[i];
            const bool bytes = kType == DType::kF32;
            BONSAI_TRY(make_tensor_map(bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : type, part.weight,
                                       part.rows, bytes ? 4 * x.cols : x.cols,
                                       static_cast<int64_t>(row_bytes(kType, x.cols)), kTileRows,
                                       &maps.w[i]));
        }
    if (work->splits > 1) BONSAI_TRY(context.scratch->get(partial_count(*work), &work->partial));
    auto* kernel = half_kernel<kType, kExact>;
    BONSAI_TRY(
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes),
              "linear: shared memory"));
    const auto grid = static_cast<unsigned>(std::min(work->units, context.multiprocessors));
    kernel<<<grid, kThreads, S::kBytes, context.stream>>>(maps, *work);
    BONSAI_TRY(check_launch("linear_half"));
    if (work->splits == 1) return Status();
    const auto blocks =
        static_cast<unsigned>((work->tiles - work->whole) * kTileSlabs * kPieces / 8);
    add_kernel<<<blocks, 256, 0, context.stream>>>(*work);
    return check_launch("linear_half: sums");
}

} // namespace

bool linear_half_serves(const Context& context, const LinearArgs& args, DType dtype, bool exact) {
#if defined(BONSAI_CUDA_HOPPER)
    if (context.capability != 90 || args.x.dtype != DType::kF32) return false;
    if (args.x.cols % 128 != 0 || args.x.rows <= kGemvRows) return false;
    for (int i = 0; i < args.count; ++i)
        if (reinterpret_cast<uintptr_t>(args.projections[i].weight.data) % 16 != 0) return false;
    return exact || dtype == DType::kQ8_0 || dtype == DType::kQ4_0 || dtype == DType::kQ4_1;
#else
    (void)context, (void)args, (void)dtype, (void)exact;
    return false;
#endif
}

HalfKind half_kind(DType dtype, bool exact) {
    if (!exact) return HalfKind::kOne;
    return dtype == DType::kBF16 || dtype == DType::kF32 ? HalfKind::kBrainPairs : HalfKind::kPairs;
}

uint64_t half_scratch(const Context& context, const LinearArgs& args, unsigned mask) {
    const Work work = plan_work(context, args, mask);
    return work.splits > 1 ? partial_count(work) * sizeof(float) : 0;
}

Status linear_half(const Context& context, const HalfRows& x, const LinearArgs& args,
                   unsigned mask) {
    Work work = plan_work(context, args, mask);
    work.inverse = x.inverse;
    const bool exact = x.low != nullptr;
    switch (work.parts.dtype) {
    case DType::kQ8_0:
        return exact ? launch<DType::kQ8_0, true>(context, x, &work)
                     : launch<DType::kQ8_0, false>(context, x, &work);
    case DType::kQ4_0:
        return exact ? launch<DType::kQ4_0, true>(context, x, &work)
                     : launch<DType::kQ4_0, false>(context, x, &work);
    case DType::kQ4_1:
        return exact ? launch<DType::kQ4_1, true>(context, x, &work)
                     : launch<DType::kQ4_1, false>(context, x, &work);
    case DType::kPQ2_0:
        return launch<DType::kPQ2_0, true>(context, x, &work);
    case DType::kQ1_0:
        return launch<DType::kQ1_0, true>(context, x, &work);
    case DType::kF16:
        return launch<DType::kF16, true>(context, x, &work);
    case DType::kBF16:
        return launch<DType::kBF16, true>(context, x, &work);
    case DType::kF32:
        return launch<DType::kF32, true>(context, x, &work);
    default:
        return fail(ErrorCode::kUnsupported, "linear: weight is %s, expected its device layout",
                    dtype_info(work.parts.dtype).name);
    }
}

} // namespace bonsai::cuda
