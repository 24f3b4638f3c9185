// SPDX-License-Identifier: Apache-2.0
// Ops of the CPU backend that write codes (I8). A piece of the result is computed in floats into a
// block of the worker, which stays in its cache, and becomes codes there, as the product that reads
// them would have made them: bit for bit the same, with a quarter of the bytes in memory.
#include <atomic>
#include <numeric>

#include "backends/cpu/backend.h"
#include "backends/cpu/pieces.h"

namespace bonsai::cpu {

namespace {

constexpr int64_t kRowsAtOnce = 4; // of the widest norms, in the first-level cache

QuantizedRows codes_of(const Tensor& t) {
    QuantizedRows codes;
    codes.rows = t.scale_stride;
    codes.cols = t.cols;
    codes.stride = t.stride;
    codes.q = static_cast<int8_t*>(t.data);
    codes.scale = t.scales;
    return codes;
}

// A worker's block as the rows [rows.begin, ...) and columns [column, ...) of a matrix: kernels
// index it like the matrix.
Tensor block_as(float* block, int64_t stride, Range rows, int64_t column) {
    Tensor t = f32_matrix(block - rows.begin * stride - column, rows.end, column + stride);
    t.stride = stride;
    return t;
}

} // namespace

template <typename Kernel>
Status CpuBackend::rows_to_codes(const char* op, const Tensor& out, const Kernel& kernel) {
    const QuantizedRows codes = codes_of(out);
    const size_t bytes = static_cast<size_t>(kRowsAtOnce * out.cols) * sizeof(float);
    std::atomic<bool> complete{true};
    BONSAI_TRY(pool_->parallel_for(pieces_of(out.rows, kRowsPerPiece), [&](int64_t i, int worker) {
        auto* block = static_cast<float*>(blocks_[static_cast<size_t>(worker)].get(bytes));
        const Range piece = piece_range(i, kRowsPerPiece, out.rows);
        if (block == nullptr) complete = false;
        for (int64_t r = piece.begin; block != nullptr && r < piece.end; r += kRowsAtOnce) {
            const Range rows = {r, std::min(piece.end, r + kRowsAtOnce)};
            const Tensor floats = block_as(block, out.cols, rows, 0);
            kernel(floats, rows);
            table_.quantize_rows(floats, codes, rows);
        }
    }));
    return complete ? Status() : no_scratch(op);
}

Status CpuBackend::layer_norm_to_codes(const LayerNormArgs& args) {
    return rows_to_codes("layer_norm", args.out, [&](const Tensor& floats, Range rows) {
        LayerNormArgs piece = args;
        piece.out = floats;
        table_.layer_norm(piece, rows);
    });
}

Status CpuBackend::swiglu_to_codes(const SwigluArgs& args) {
    return rows_to_codes("swiglu", args.out, [&](const Tensor& floats, Range rows) {
        table_.swiglu({args.gate, args.up, floats}, rows);
    });
}

// x of a product as kernels want it. What the level's kernels read of the sums of codes is made
// here: of I8 only codes and scales are kept.
Status CpuBackend::take_codes(const Tensor& x, QuantizedRows* out) {
    *out = codes_of(x);
    if (!table_.linear_needs_sums) return Status();
    const int64_t groups = x.cols / kGroup;
    const size_t bytes = sums_bytes(x);
    out->sum = static_cast<int32_t*>(shared_.get(bytes));
    if (out->sum == nullptr) return no_memory("linear", bytes);
    out->block_sum = out->sum + groups * x.scale_stride;
    return pool_->parallel_for(pieces_of(x.rows, kRowsPerPiece), [&](int64_t i, int) {
        table_.sum_codes(*out, piece_range(i, kRowsPerPiece, x.rows));
    });
}

// The groups' and the blocks'.
size_t CpuBackend::sums_bytes(const Tensor& x) {
    return static_cast<size_t>((x.cols / kGroup + x.cols / kBlock) * x.scale_stride) *
           sizeof(int32_t);
}

// A piece has as many columns of gate as of up, in whole groups of what they become.
Status CpuBackend::project_activated(const Tensor& x, const QuantizedRows& codes,
                                     const Projection& p) {
    const bool to_codes = p.out.dtype == DType::kI8;
    const QuantizedRows out = to_codes ? codes_of(p.out) : QuantizedRows();
    const int64_t half = p.weight.rows / 2;
    const PieceSize preferred = table_.linear_piece(p.weight.dtype);
    const PieceSize piece =
        for_workers({std::min(preferred.rows, x.rows), pieces_of(preferred.cols, kGroup) * kGroup},
                    pool_->size(), x.rows, half, kGroup, kGroup);
    const ProductPieces pieces = ProductPieces::of(x.rows, half, piece, kGroup, pool_->size());
    const size_t bytes = static_cast<size_t>(2 * piece.rows * piece.cols) * sizeof(float);
    std::atomic<bool> complete{true};
    const auto compute = [&](Range rows, Range cols, size_t worker) {
        auto* block = static_cast<float*>(blocks_[worker].get(bytes));
        if (block == nullptr) return false;
        const int64_t n = cols.end - cols.begin;
        const Tensor gate = block_as(block, 2 * n, rows, 0),
                     up = block_as(block + n, 2 * n, rows, 0);
        for (const bool second : {false, true}) {
            Projection part;
            part.weight = p.weight.slice_rows((second ? half : 0) + cols.begin, n);
            part.out = second ? up : gate;
            if (!table_.linear_fast(codes, part, rows, {0, n}, scratch_[worker])) return false;
        }
        SwigluArgs activation{gate.slice_cols(0, n), up.slice_cols(0, n), gate.slice_cols(0, n)};
        if (!to_codes) activation.out = p.out.slice_cols(cols.begin, n);
        table_.swiglu(activation, rows);
        if (to_codes) quantize_block(activation.out, out, cols.begin, rows);
        return true;
    };
    BONSAI_TRY(pool_->parallel_for(pieces.count(), [&](int64_t i, int worker) {
        if (!compute(pieces.rows(i), pieces.columns(i), static_cast<size_t>(worker)))
            complete = false;
    }));
    return complete ? Status() : no_scratch("linear");
}

// Rows of `floats` to the columns of codes from `column` on.
void CpuBackend::quantize_block(const Tensor& floats, const QuantizedRows& codes, int64_t column,
                                Range rows) const {
    QuantizedRows part = codes;
    part.cols = floats.cols;
    part.q += column;
    part.scale += column / kGroup * codes.rows;
    table_.quantize_rows(floats, part, rows);
}

// A piece has all heads that share a group.
Status CpuBackend::attend_to_codes(const AttentionArgs& args, int64_t piece, int64_t narrow,
                                   const AttentionKernel& kernel) {
    const QuantizedRows codes = codes_of(args.out);
    const int64_t width = std::lcm<int64_t>(args.head_dim, kGroup);
    const TaperedRows taper =
        TaperedRows::of(args.q.rows, piece, narrow, pieces_of(args.out.cols, width), pool_->size());
    const size_t bytes = static_cast<size_t>(std::min(piece, args.q.rows) * width) * sizeof(float);
    std::atomic<bool> complete{true};
    const auto compute = [&](Range rows, Range cols, size_t worker) {
        auto* block = static_cast<float*>(blocks_[worker].get(bytes));
        if (block == nullptr) return false;
        AttentionArgs part = args;
        part.out = block_as(block, cols.end - cols.begin, rows, cols.begin);
        for (int64_t c = cols.begin; c < cols.end; c += args.head_dim)
            if (!kernel(part, static_cast<int>(c / args.head_dim), rows, scratch_[worker]))
                return false;
        quantize_block(part.out.slice_cols(cols.begin, cols.end - cols.begin), codes, cols.begin,
                       rows);
        return true;
    };
    BONSAI_TRY(pool_->parallel_for(taper.pieces(), [&](int64_t i, int worker) {
        if (!compute(taper.range(i), piece_range(taper.thing(i), width, args.out.cols),
                     static_cast<size_t>(worker)))
            complete = false;
    }));
    return complete ? Status() : no_scratch("attention");
}

} // namespace bonsai::cpu
