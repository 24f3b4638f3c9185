// SPDX-License-Identifier: Apache-2.0
// linear: y = x W^T + bias, stored or added with a gate; which kernel serves which projection
#include "backends/cuda/kernels.h"
#include "backends/cuda/linear.h"
#include "backends/cuda/linear_half.h"

namespace bonsai::cuda {

Parts make_parts(const LinearArgs& args, unsigned mask, int tile_rows) {
    Parts parts;
    for (int i = 0; i < args.count; ++i) {
        if ((mask >> i & 1) == 0) continue;
        const Projection& p = args.projections[i];
        Part& part = parts.part[parts.count++];
        part.weight = static_cast<const uint8_t*>(p.weight.data);
        part.rows = static_cast<int>(p.weight.rows);
        part.first_tile = parts.tiles;
        part.out = p.out.data;
        part.out_stride = p.out.stride;
        part.bias = p.bias.empty() ? nullptr : p.bias.f32();
        part.gate = p.gate.empty() ? nullptr : p.gate.f32();
        part.accumulate = p.accumulate;
        part.half = p.out.dtype == DType::kF16;
        parts.tiles += (part.rows + tile_rows - 1) / tile_rows;
        parts.dtype = p.weight.dtype;
    }
    return parts;
}

namespace {

// Projection i and the later ones of its type, as a mask.
unsigned same_type(const LinearArgs& args, int i) {
    unsigned mask = 0;
    for (int j = i; j < args.count; ++j)
        if (args.projections[j].weight.dtype == args.projections[i].weight.dtype) mask |= 1u << j;
    return mask;
}

// Calls body(mask, dtype) for the projections of each weight type.
template <typename Body> Status for_each_type(const LinearArgs& args, const Body& body) {
    unsigned done = 0;
    for (int i = 0; i < args.count; ++i) {
        if ((done >> i & 1) != 0) continue;
        const unsigned mask = same_type(args, i);
        done |= mask;
        BONSAI_TRY(body(mask, args.projections[i].weight.dtype));
    }
    return Status();
}

// Whether x becomes int8 for weights in blocks.
bool may_quantize(const Context& context, const LinearArgs& args) {
    return context.precision == Precision::kFast && !args.exact && args.x.cols % kGroup == 0;
}

Status project_quantized(const Context& context, const QuantizedRows& x, const LinearArgs& args,
                         unsigned mask, DType dtype) {
    if (linear_hopper_serves(context, dtype)) {
        const HopperProduct product = {x, &args, mask};
        return linear_hopper(context, &product, 1);
    }
    return linear_int8(context, x, args, mask);
}

// Inputs that share a scale: kWideGroup where the kernels of all weights are made for it.
int group_of(const Context& context, const LinearArgs& args) {
    for (int i = 0; i < args.count; ++i) {
        const DType dtype = args.projections[i].weight.dtype;
        if (is_block_quantized(dtype) && !linear_hopper_serves(context, dtype)) return kGroup;
    }
    return kWideGroup;
}

Status project_exact(const Context& context, const LinearArgs& args, unsigned mask, DType dtype) {
    if (args.x.rows <= kGemvRows) return linear_gemv(context, args, mask);
    if (!linear_half_serves(context, args, dtype, true)) return linear_exact(context, args, mask);
    HalfRows x;
    BONSAI_TRY(half_rows(context, args.x, half_kind(dtype, true), &x));
    return linear_half(context, x, args, mask);
}

// Bytes that project_exact takes of the scratch.
uint64_t exact_route_scratch(const Context& context, const LinearArgs& args, unsigned mask,
                             DType dtype) {
    if (args.x.rows <= kGemvRows) return 0;
    if (!linear_half_serves(context, args, dtype, true)) return exact_scratch(context, args, mask);
    return half_rows_bytes(args.x, half_kind(dtype, true)) + half_scratch(context, args, mask);
}

} // namespace

Status linear_quantized(const Context& context, const QuantizedRows& x, const LinearArgs& args) {
    return for_each_type(args, [&](unsigned mask, DType dtype) {
        return project_quantized(context, x, args, mask, dtype);
    });
}

bool linear_folds(const Context& context, const LinearArgs& args) {
    return linear_hopper_serves(context, DType::kPQ2_0) &&
           (args.x.dtype == DType::kI8 || may_quantize(context, args));
}

Status linear(const Context& context, const LinearArgs& args) {
    if (args.x.dtype == DType::kI8) return linear_quantized(context, quantized_rows(args.x), args);
    QuantizedRows quantized;
    HalfRows half;
    return for_each_type(args, [&](unsigned mask, DType dtype) {
        if (!may_quantize(context, args) || !is_block_quantized(dtype))
            return project_exact(context, args, mask, dtype);
        if (linear_half_serves(context, args, dtype, false)) {
            if (!half.high) BONSAI_TRY(half_rows(context, args.x, HalfKind::kOne, &half));
            return linear_half(context, half, args, mask);
        }
        if (!quantized.q) {
            BONSAI_TRY(allocate_quantized(context, args.x.rows, args.x.cols,
                                          group_of(context, args), &quantized));
            BONSAI_TRY(quantize_rows(context, args.x, quantized));
        }
        return project_quantized(context, quantized, args, mask, dtype);
    });
}

uint64_t linear_scratch(const Context& context, const LinearArgs& args) {
    if (args.x.dtype == DType::kI8) return 0;
    uint64_t rows = 0, quantized = 0, bytes = 0; // of x in either form, once; of the products
    (void)for_each_type(args, [&](unsigned mask, DType dtype) {
        if (!may_quantize(context, args) || !is_block_quantized(dtype)) {
            bytes += exact_route_scratch(context, args, mask, dtype);
        } else if (linear_half_serves(context, args, dtype, false)) {
            rows = half_rows_bytes(args.x, HalfKind::kOne);
            bytes += half_scratch(context, args, mask);
        } else {
            quantized = quantized_bytes(args.x.rows, args.x.cols, group_of(context, args));
        }
        return Status();
    });
    return rows + quantized + bytes;
}

Status linear_pair(const Context& context, const LinearArgs& a, const LinearArgs& b) {
    const HopperProduct products[2] = {{quantized_rows(a.x), &a, same_type(a, 0)},
                                       {quantized_rows(b.x), &b, same_type(b, 0)}};
    const DType dtype = a.projections[0].weight.dtype;
    const bool together =
        a.x.dtype == DType::kI8 && b.x.dtype == DType::kI8 && a.x.cols == b.x.cols &&
        products[0].x.group == products[1].x.group && dtype == b.projections[0].weight.dtype &&
        products[0].mask == (1u << a.count) - 1 && products[1].mask == (1u << b.count) - 1;
    if (together && linear_hopper_serves(context, dtype))
        return linear_hopper(context, products, 2);
    BONSAI_TRY(linear(context, a));
    context.scratch->reset(); // they run one after the other
    return linear(context, b);
}

} // namespace bonsai::cuda
