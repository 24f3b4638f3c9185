// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backends/cpu/pieces.h"
#include "core/mapped_file.h"
#include "core/system.h"
#include "core/work_memory.h"

namespace bonsai::cpu {

namespace {

// Winograd tiles along a side of a block: enough to use each weight often, few enough that their 36
// points stay near L2; and the fewest in a block.
constexpr int64_t kBlockTiles = 8;
constexpr int64_t kLeastTiles = 12;

class HostBuffer final : public Buffer {
  public:
    explicit HostBuffer(size_t bytes) {
        data_ = allocate_work_memory(bytes);
        size_ = data_ ? bytes : 0;
    }
    ~HostBuffer() override { free_work_memory(data_, size_); }
};

// The same convolution with `out` and `add` beginning at the row of the first row of x, as kernels
// want them.
Conv2dArgs from_first_row(const Conv2dArgs& args) {
    Conv2dArgs moved = args;
    const int64_t skipped = args.above * args.width * args.zoom() * args.zoom();
    for (Tensor* t : {&moved.out, &moved.add})
        if (!t->empty()) t->data = t->f32() - skipped * t->stride, t->rows += skipped;
    return moved;
}

// Multiplier and offset of each channel from sums and sums of squares of the groups.
void form_affine(const GroupNormArgs& args, const double* sums, int64_t pixels) {
    const int64_t channels = args.x.cols / args.groups;
    const double count = static_cast<double>(pixels) * static_cast<double>(channels);
    float* multiplier = args.affine.row(0);
    float* offset = args.affine.row(1);
    for (int64_t c = 0; c < args.x.cols; ++c) {
        const double* group = sums + 2 * (c / channels);
        const double mean = group[0] / count;
        const double variance = std::max(0.0, group[1] / count - mean * mean);
        const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(args.eps));
        multiplier[c] = static_cast<float>(args.gain.f32()[c] * inverse);
        offset[c] = static_cast<float>(args.bias.f32()[c] - mean * args.gain.f32()[c] * inverse);
    }
}

} // namespace

Status no_memory(const char* what, size_t bytes) {
    return fail(ErrorCode::kMemory,
                "%s: no memory for %zu MB; close other programs or draw a smaller picture", what,
                (bytes + 999999) / 1000000);
}

Status no_scratch(const char* op) {
    return fail(ErrorCode::kMemory,
                "%s: no memory for scratch space; close other programs or use fewer threads", op);
}

Status CpuBackend::create(const BackendOptions& options, Level level,
                          std::unique_ptr<Backend>* out) {
    const int threads = options.threads > 0 ? options.threads : default_thread_count();
    std::unique_ptr<CpuBackend> backend(new CpuBackend(options, kernel_table(level)));
    BONSAI_TRY(ThreadPool::create(threads, options.threads > 0, &backend->pool_));
    backend->scratch_ = std::vector<Scratch>(static_cast<size_t>(backend->pool_->size()));
    backend->blocks_ = std::vector<Scratch>(backend->scratch_.size());
    const MemoryInfo memory = system_memory();
    backend->device_ = {"cpu",        cpu_name(),       level_info(level).name,
                        memory.total, memory.available, backend->pool_->size()};
    *out = std::move(backend);
    return Status();
}

uint64_t CpuBackend::memory_free() const {
    return system_memory().available;
}

Status CpuBackend::allocate(size_t bytes, std::unique_ptr<Buffer>* out) {
    std::unique_ptr<Buffer> buffer(new HostBuffer(bytes));
    if (!buffer->data()) return no_memory("activations", bytes);
    *out = std::move(buffer);
    return Status();
}

Status CpuBackend::load_weight(const Tensor& host, std::unique_ptr<Buffer>*, Tensor* out) {
    *out = host;
    return Status();
}

void CpuBackend::evict_weight(const Tensor& weight) {
    evict_pages(weight.data,
                static_cast<size_t>(weight.rows) * row_bytes(weight.dtype, weight.stride));
}

Status CpuBackend::write(const Tensor& to, const void* host) {
    const size_t bytes = row_bytes(to.dtype, to.cols);
    for (int64_t r = 0; r < to.rows; ++r)
        std::memcpy(to.slice_rows(r, 1).data,
                    static_cast<const uint8_t*>(host) + static_cast<size_t>(r) * bytes, bytes);
    return Status();
}

Status CpuBackend::read(const Tensor& from, void* host) {
    const size_t bytes = row_bytes(from.dtype, from.cols);
    for (int64_t r = 0; r < from.rows; ++r)
        std::memcpy(static_cast<uint8_t*>(host) + static_cast<size_t>(r) * bytes,
                    from.slice_rows(r, 1).data, bytes);
    return Status();
}

Status CpuBackend::copy(const Tensor& from, const Tensor& to) {
    return pool_->parallel_for(from.rows, [&](int64_t r, int) {
        std::memcpy(to.row(r), from.row(r), static_cast<size_t>(from.cols) * sizeof(float));
    });
}

size_t CpuBackend::scratch_peak() const {
    size_t peak = 0;
    for (const Scratch& scratch : scratch_)
        peak = std::max(peak, scratch.peak());
    return peak;
}

template <typename Args>
Status CpuBackend::by_rows(const Args& args, void (*kernel)(const Args&, Range)) {
    const int64_t rows = args.x.rows;
    return pool_->parallel_for(pieces_of(rows, kRowsPerPiece), [&](int64_t i, int) {
        kernel(args, piece_range(i, kRowsPerPiece, rows));
    });
}

Status CpuBackend::do_rms_norm(const RmsNormArgs& args) {
    return by_rows(args, table_.rms_norm);
}
Status CpuBackend::do_layer_norm(const LayerNormArgs& args) {
    if (args.out.dtype == DType::kI8) return layer_norm_to_codes(args);
    return by_rows(args, table_.layer_norm);
}
Status CpuBackend::do_head_norm_rope(const HeadNormRopeArgs& args) {
    BONSAI_TRY(by_rows(args, table_.head_norm_rope));
    if (args.also.empty()) return Status();
    HeadNormRopeArgs also = args;
    also.x = args.also, also.gain = args.also_gain;
    return by_rows(also, table_.head_norm_rope);
}
Status CpuBackend::do_silu(const SiluArgs& args) {
    return by_rows(args, table_.silu);
}
Status CpuBackend::do_affine(const AffineArgs& args) {
    return by_rows(args, table_.affine);
}

Status CpuBackend::do_swiglu(const SwigluArgs& args) {
    if (args.out.dtype == DType::kI8) return swiglu_to_codes(args);
    const int64_t rows = args.gate.rows;
    return pool_->parallel_for(pieces_of(rows, kRowsPerPiece), [&](int64_t i, int) {
        table_.swiglu(args, piece_range(i, kRowsPerPiece, rows));
    });
}

Status CpuBackend::do_embed_rows(const EmbedRowsArgs& args) {
    for (int64_t r = 0; r < args.out.rows; ++r)
        table_.dequantize_row(args.table.dtype, args.table.packed_row(args.ids[r]), args.out.row(r),
                              args.table.cols);
    return Status();
}

// Products read codes: what is read by products only is best written as such.
ActivationTypes CpuBackend::activations() const {
    ActivationTypes types;
    if (precision_ != Precision::kFast) return types;
    types.product = DType::kI8;
    // Apart for the reason of padded_stride (generic/quantize.cpp).
    types.product_gap = kGroup;
    types.activate = true;
    return types;
}

// Which form an op takes, and what that form works with.
bool CpuBackend::quantizes(const LinearArgs& args) const {
    if (args.x.dtype == DType::kI8 || precision_ != Precision::kFast || args.exact ||
        args.x.cols % kGroup != 0)
        return false;
    for (int i = 0; i < args.count; ++i)
        if (is_block_quantized(args.projections[i].weight.dtype)) return true;
    return false;
}

uint64_t CpuBackend::scratch_bytes(const LinearArgs& args) const {
    if (quantizes(args)) return quantized_rows_bytes(args.x.rows, args.x.cols);
    return args.x.dtype == DType::kI8 && table_.linear_needs_sums ? sums_bytes(args.x) : 0;
}

uint64_t CpuBackend::scratch_bytes(const AttentionArgs& args) const {
    const bool fast = precision_ == Precision::kFast && !args.causal && table_.attention_fast;
    return fast ? table_.attention_packed_floats(args) * sizeof(float) : 0;
}

uint64_t CpuBackend::scratch_bytes(const Conv2dArgs& args) const {
    const bool fast = precision_ == Precision::kFast && args.kernel == 3 && table_.winograd;
    return fast ? table_.winograd_weight_floats(args) * sizeof(float) : 0;
}

Status CpuBackend::quantize(const Tensor& x, QuantizedRows* out) {
    const size_t bytes = quantized_rows_bytes(x.rows, x.cols);
    void* memory = shared_.get(bytes);
    if (!memory) return no_memory("linear", bytes);
    *out = quantized_rows_at(memory, x.rows, x.cols);
    return pool_->parallel_for(pieces_of(x.rows, kRowsPerPiece), [&](int64_t i, int) {
        table_.quantize_rows(x, *out, piece_range(i, kRowsPerPiece, x.rows));
    });
}

Status CpuBackend::project(const Tensor& x, const QuantizedRows* quantized, const Projection& p) {
    const PieceSize piece = for_workers(table_.linear_piece(p.weight.dtype), pool_->size(), x.rows,
                                        p.out.cols, kLeastPieceCols, 1);
    const ProductPieces pieces = ProductPieces::of(
        x.rows, p.out.cols, piece, std::max(kLeastPieceCols, piece.cols / 4), pool_->size());
    std::atomic<bool> complete{true};
    BONSAI_TRY(pool_->parallel_for(pieces.count(), [&](int64_t i, int worker) {
        const Range rows = pieces.rows(i), cols = pieces.columns(i);
        Scratch& scratch = scratch_[static_cast<size_t>(worker)];
        const bool done = quantized ? table_.linear_fast(*quantized, p, rows, cols, scratch)
                                    : table_.linear_exact(x, p, rows, cols, scratch);
        if (!done) complete = false;
    }));
    return complete ? Status() : no_scratch("linear");
}

Status CpuBackend::do_linear(const LinearArgs& args) {
    QuantizedRows quantized;
    if (args.x.dtype == DType::kI8)
        BONSAI_TRY(take_codes(args.x, &quantized));
    else if (quantizes(args))
        BONSAI_TRY(quantize(args.x, &quantized));
    for (int i = 0; i < args.count; ++i) {
        const Projection& p = args.projections[i];
        const bool fast = quantized.q && is_block_quantized(p.weight.dtype);
        if (p.activate)
            BONSAI_TRY(project_activated(args.x, quantized, p));
        else
            BONSAI_TRY(project(args.x, fast ? &quantized : nullptr, p));
    }
    return Status();
}

// `kernel` for each head and piece of rows.
Status CpuBackend::attend(const AttentionArgs& args, int64_t piece, int64_t narrow,
                          const AttentionKernel& kernel) {
    if (args.out.dtype == DType::kI8) return attend_to_codes(args, piece, narrow, kernel);
    const TaperedRows taper =
        TaperedRows::of(args.q.rows, piece, narrow, args.heads, pool_->size());
    std::atomic<bool> complete{true};
    BONSAI_TRY(pool_->parallel_for(taper.pieces(), [&](int64_t i, int worker) {
        if (!kernel(args, static_cast<int>(taper.thing(i)), taper.range(i),
                    scratch_[static_cast<size_t>(worker)]))
            complete = false;
    }));
    return complete ? Status() : no_scratch("attention");
}

Status CpuBackend::do_attention(const AttentionArgs& args) {
    const size_t bytes = scratch_bytes(args);
    const int64_t exact_piece = table_.attention_piece_rows,
                  piece = table_.attention_fast_piece_rows;
    if (bytes == 0) return attend(args, exact_piece, exact_piece, table_.attention);
    auto* packed = static_cast<float*>(shared_.get(bytes));
    if (!packed) return no_scratch("attention");
    BONSAI_TRY(pool_->parallel_for(
        pieces_of(args.k.rows, table_.attention_pack_rows),
        [&](int64_t i, int) { table_.attention_pack(args, {i, i + 1}, packed); }));
    return attend(args, piece, piece / 4,
                  [&](const AttentionArgs& part, int head, Range rows, Scratch& scratch) {
                      return table_.attention_fast(part, packed, head, rows, scratch);
                  });
}

Status CpuBackend::do_group_norm(const GroupNormArgs& args) {
    const int64_t pieces = pieces_of(args.x.rows, args.piece);
    const size_t per_piece = 2 * static_cast<size_t>(args.groups);
    const size_t count = static_cast<size_t>(pieces + 1) * per_piece;
    auto* total = static_cast<double*>(sums_.get(count * sizeof(double)));
    if (!total) return no_scratch("group_norm");
    double* sums = total + per_piece;
    std::fill_n(total, count, 0.0);
    BONSAI_TRY(pool_->parallel_for(pieces, [&](int64_t i, int) {
        table_.group_sums(args, piece_range(i, args.piece, args.x.rows),
                          sums + static_cast<size_t>(i) * per_piece);
    }));
    const size_t carried = per_piece * sizeof(double);
    if (!args.first) std::memcpy(total, args.carry.data, carried);
    for (int64_t i = 0; i < pieces; ++i) {
        for (size_t j = 0; j < per_piece; ++j)
            total[j] += sums[static_cast<size_t>(i) * per_piece + j];
    }
    if (args.last)
        form_affine(args, total, args.carry.empty() ? args.x.rows : args.pixels);
    else
        std::memcpy(args.carry.data, total, carried);
    return Status();
}

// Few tiles are cut into small blocks, so that all workers have some; results do not depend on it.
Status CpuBackend::winograd(const Conv2dArgs& args) {
    const int64_t rows = pieces_of(args.out_height(), 4),
                  cols = pieces_of(args.width * args.zoom(), 4);
    int64_t tall = kBlockTiles, wide = kBlockTiles;
    const auto blocks = [&] { return pieces_of(rows, tall) * pieces_of(cols, wide); };
    while (tall * wide > kLeastTiles && blocks() < 3 * pool_->size())
        (tall > wide ? tall : wide) /= 2;

    auto* transformed = static_cast<float*>(shared_.get(scratch_bytes(args)));
    if (!transformed) return no_scratch("conv2d");
    BONSAI_TRY(
        pool_->parallel_for(pieces_of(args.out.cols, table_.winograd_panel), [&](int64_t i, int) {
            table_.winograd_weights(args, {i, i + 1}, transformed);
        }));
    std::atomic<bool> complete{true};
    BONSAI_TRY(pool_->parallel_for(blocks(), [&](int64_t i, int worker) {
        const int64_t y = i / pieces_of(cols, wide) * tall, x = i % pieces_of(cols, wide) * wide;
        const TileBlock block = {y, x, std::min(tall, rows - y), std::min(wide, cols - x)};
        if (!table_.winograd(args, transformed, block, scratch_[static_cast<size_t>(worker)]))
            complete = false;
    }));
    return complete ? Status() : no_scratch("conv2d");
}

Status CpuBackend::do_conv2d(const Conv2dArgs& args) {
    const Conv2dArgs moved = from_first_row(args);
    if (scratch_bytes(args) > 0) return winograd(moved);
    const int64_t height = args.out_height(), piece = table_.conv2d_piece_rows;
    const int64_t skipped = int64_t{args.above} * args.zoom();
    std::atomic<bool> complete{true};
    BONSAI_TRY(pool_->parallel_for(pieces_of(height, piece), [&](int64_t i, int worker) {
        const Range rows = piece_range(i, piece, height);
        if (!table_.conv2d(moved, {rows.begin + skipped, rows.end + skipped},
                           scratch_[static_cast<size_t>(worker)]))
            complete = false;
    }));
    return complete ? Status() : no_scratch("conv2d");
}

} // namespace bonsai::cpu
