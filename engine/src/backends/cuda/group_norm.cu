// SPDX-License-Identifier: Apache-2.0
// group_norm: statistics of channel groups over all pixels, as one multiplier and one offset a
//             channel.
// Layout:   x [P, C] f32, channels last, row stride; affine [2, C].
// Maths:    sums of x - s and (x - s)^2 with s the group's first number, so that a large mean does
//           not cancel; f32 within a thread's pixels, double across threads and blocks.
// Work:     the pixels are split by their number alone into at most kMaxBlocks pieces; a second
//           kernel adds the pieces of each group in order: the same bytes on every run. Of a
//           picture in strips, both sums and s of each group are carried on.
// Roofline: reads 4 bytes a number, memory-bound.
#include <algorithm>

#include "backends/cuda/kernels.h"

namespace bonsai::cuda {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1024;
constexpr int64_t kMinPixels = 32; // of a block

namespace {

struct Sums {
    double first, second;
};

struct GroupNorm {
    const float* x;
    int64_t pixels, stride, piece; // piece: pixels of a block
    int channels, groups;
    const float* shift; // s of a group, shift_step numbers from one to the next
    int shift_step;
};

// From strip to strip.
struct Carry {
    Sums* sums; // [groups], null: the picture is one strip
    float* shift;
    int64_t pixels; // of the picture
    bool first, last;
};

} // namespace

// Sums of kVector channels from c on over every `step`-th pixel from `begin` on.
template <int kVector>
__device__ __forceinline__ Sums sum_channels(const GroupNorm& g, int c, int64_t begin, int64_t end,
                                             int64_t step) {
    const float shift = g.shift[c / (g.channels / g.groups) * g.shift_step];
    float first[kVector] = {}, second[kVector] = {};
#pragma unroll 4
    for (int64_t p = begin; p < end; p += step) {
        float v[kVector];
        const float* x = g.x + p * g.stride + c;
        if constexpr (kVector == 4) {
            const float4 four = *reinterpret_cast<const float4*>(x);
            v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        } else {
            v[0] = x[0];
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const float d = v[i] - shift;
            first[i] += d;
            second[i] = fmaf(d, d, second[i]);
        }
    }
    Sums sums = {};
#pragma unroll
    for (int i = 0; i < kVector; ++i)
        sums.first += first[i], sums.second += second[i];
    return sums;
}

template <int kVector>
static __global__ void __launch_bounds__(kThreads) partial_kernel(GroupNorm g, Sums* partial) {
    __shared__ Sums of_thread[kThreads];
    const int units = g.channels / kVector, group_units = units / g.groups;
    const int wide = min(units, kThreads); // threads side by side
    const int deep = kThreads / wide;      // pixels at a time
    const int lane = static_cast<int>(threadIdx.x) % wide;
    const int row = static_cast<int>(threadIdx.x) / wide;
    const int64_t begin = int64_t{blockIdx.x} * g.piece;
    const int64_t end = min(begin + g.piece, g.pixels);
    Sums* out = partial + int64_t{blockIdx.x} * g.groups;
    // Passes of `wide` units; a group that two passes share is continued by the thread that owns
    // it.
    for (int first = 0; first < units; first += wide) {
        const int unit = first + lane;
        if (row < deep && unit < units)
            of_thread[threadIdx.x] =
                sum_channels<kVector>(g, unit * kVector, begin + row, end, deep);
        __syncthreads();
        for (int group = static_cast<int>(threadIdx.x); group < g.groups; group += kThreads) {
            const int low = max(group * group_units, first);
            const int high = min(min((group + 1) * group_units, first + wide), units);
            if (low >= high) continue;
            Sums sums = low == group * group_units ? Sums{0, 0} : out[group];
            for (int u = low; u < high; ++u) {
                for (int r = 0; r < deep; ++r) {
                    sums.first += of_thread[r * wide + u - first].first;
                    sums.second += of_thread[r * wide + u - first].second;
                }
            }
            out[group] = sums;
        }
        __syncthreads();
    }
}

// One block a group.
static __global__ void __launch_bounds__(kThreads)
    affine_kernel(GroupNorm g, Carry carry, const Sums* partial, int blocks, const float* gain,
                  const float* bias, float eps, float* multiplier, float* offset) {
    __shared__ Sums of_thread[kThreads];
    const int group = static_cast<int>(blockIdx.x), width = g.channels / g.groups;
    Sums sums = {};
    for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
        sums.first += partial[int64_t{i} * g.groups + group].first;
        sums.second += partial[int64_t{i} * g.groups + group].second;
    }
    of_thread[threadIdx.x] = sums;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            of_thread[threadIdx.x].first += of_thread[threadIdx.x + half].first;
            of_thread[threadIdx.x].second += of_thread[threadIdx.x + half].second;
        }
        __syncthreads();
    }
    const float shift = g.shift[group * g.shift_step];
    Sums total = of_thread[0];
    if (!carry.first) {
        total.first += carry.sums[group].first;
        total.second += carry.sums[group].second;
    }
    if (!carry.last) {
        __syncthreads(); // all have read the sums so far
        if (threadIdx.x == 0) carry.sums[group] = total, carry.shift[group] = shift;
        return;
    }
    const double count = static_cast<double>(carry.pixels) * width;
    const double shifted = total.first / count; // mean of x - shift
    const double variance = fmax(total.second / count - shifted * shifted, 0.0);
    const double mean = shifted + shift;
    const double scale = 1.0 / sqrt(variance + eps);
    for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
        const int c = group * width + i;
        const double factor = gain[c] * scale;
        multiplier[c] = static_cast<float>(factor);
        offset[c] = static_cast<float>(bias[c] - mean * factor);
    }
}

Status group_norm(const Context& context, const GroupNormArgs& args) {
    GroupNorm g = {};
    g.x = args.x.f32(), g.stride = args.x.stride, g.pixels = args.x.rows;
    g.channels = static_cast<int>(args.x.cols), g.groups = args.groups;
    g.piece = std::max(kMinPixels, (g.pixels + kMaxBlocks - 1) / kMaxBlocks);
    const auto blocks = static_cast<int>((g.pixels + g.piece - 1) / g.piece);
    Carry carry = {nullptr, nullptr, g.pixels, args.first, args.last};
    if (!args.carry.empty()) {
        carry.sums = reinterpret_cast<Sums*>(args.carry.f32());
        carry.shift = args.carry.f32() + 4 * args.groups;
        carry.pixels = args.pixels;
    }
    g.shift = args.first ? g.x : carry.shift;
    g.shift_step = args.first ? g.channels / g.groups : 1;
    Sums* partial = nullptr;
    BONSAI_TRY(context.scratch->get(static_cast<size_t>(blocks) * g.groups, &partial));
    const bool vector = g.channels / g.groups % 4 == 0 && g.stride % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(g.x) % 16 == 0;
    if (vector)
        partial_kernel<4><<<blocks, kThreads, 0, context.stream>>>(g, partial);
    else
        partial_kernel<1><<<blocks, kThreads, 0, context.stream>>>(g, partial);
    BONSAI_TRY(check_launch("group_norm sums"));
    affine_kernel<<<g.groups, kThreads, 0, context.stream>>>(
        g, carry, partial, blocks, args.gain.f32(), args.bias.f32(), args.eps, args.affine.row(0),
        args.affine.row(1));
    return check_launch("group_norm");
}

} // namespace bonsai::cuda
