// SPDX-License-Identifier: Apache-2.0
// The CPU backend's kernels behind one table. It is filled with the plain reference kernels
// (generic/) first and then overlaid with the entries of the best level the processor has. A kernel
// works on a range of independent units, so that any split over threads gives the same bytes; it
// owns no memory but the scratch it is given.
#pragma once

#include "ops/ops.h"

namespace bonsai::cpu {

struct Range {
    int64_t begin;
    int64_t end;
};

struct PieceSize {
    int64_t rows, cols;
};

// A rectangle of an image in tiles of 4 x 4 output pixels, from the first row of the output on; it
// may reach over the edges.
struct TileBlock {
    int64_t y, x, rows, cols;
};

// Grows on demand, one for each worker; contents do not survive a call.
class Scratch {
  public:
    ~Scratch();
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    // 64-byte aligned; null when memory ran out.
    void* get(size_t bytes);
    size_t peak() const { return size_; }
    void release();

  private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// Weights of one block of Q8_0, Q4_0 and Q4_1.
constexpr int kBlock = 32;
// A group of activations whose largest magnitude is below this is quantised to zeros.
constexpr float kLeastGroupMagnitude = 0x1p-100f;

// Activations as int8: x[m, k] ~ scale[m, k / 128] * q[m, k], with the sums of the codes of each
// group and block (needed where weight codes carry an offset). K % 128 == 0.
struct QuantizedRows {
    int64_t rows = 0; // at least; the distance of what belongs to two groups, below M
    int64_t cols = 0;
    int64_t stride = 0;     // bytes from one row of q to the next
    int8_t* q = nullptr;    // [M, K], |q| <= 127
    float* scale = nullptr; // [K / 128, M], max |x| of the group / 127; 0 for an all-zero group,
                            // NaN for one with NaN or Inf
    // Null where only codes are wanted, and where no kernel of the level reads them.
    int32_t* sum = nullptr;       // [K / 128, M]
    int32_t* block_sum = nullptr; // [K / 32, M]
};
// Of every array a kernel may read kSpareRows beyond the last.

// Bytes that the arrays of `rows` x `cols` take, and the arrays laid out in such memory, which is
// 64-byte aligned.
size_t quantized_rows_bytes(int64_t rows, int64_t cols);
QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t cols);

struct KernelTable {
    const char* level;

    // Packed or float row of `n` elements to f32.
    void (*dequantize_row)(DType dtype, const uint8_t* packed, float* out, int64_t n);
    // Rows of x to int8; the arrays of `out` are already allocated.
    void (*quantize_rows)(const Tensor& x, const QuantizedRows& out, Range rows);
    // The sums of codes that are there already.
    void (*sum_codes)(const QuantizedRows& x, Range rows);
    // Whether linear_fast reads them where weights have no offset (meets_codes).
    bool linear_needs_sums;

    // The piece rows x cols of one projection. `rows` index x and out, `cols` index out features.
    // The pieces of a product are disjoint; weights are unpacked into scratch, a tile at a time,
    // and serve all rows of the piece. linear_fast is for block-quantised weights; float weights
    // and K % 128 != 0 go to linear_exact. False: scratch could not be had.
    bool (*linear_exact)(const Tensor& x, const Projection& p, Range rows, Range cols,
                         Scratch& scratch);
    bool (*linear_fast)(const QuantizedRows& x, const Projection& p, Range rows, Range cols,
                        Scratch& scratch);
    // Preferred piece of a product with such weights; every level may choose its own.
    PieceSize (*linear_piece)(DType weights);

    void (*rms_norm)(const RmsNormArgs& args, Range rows);
    void (*layer_norm)(const LayerNormArgs& args, Range rows);
    void (*head_norm_rope)(const HeadNormRopeArgs& args, Range rows);
    void (*swiglu)(const SwigluArgs& args, Range rows);
    void (*silu)(const SiluArgs& args, Range rows);
    void (*affine)(const AffineArgs& args, Range rows);

    // One head, query rows [begin, end).
    bool (*attention)(const AttentionArgs& args, int head, Range query_rows, Scratch& scratch);
    int64_t attention_piece_rows;
    // The same with 16-bit factors (on AMX bf16), not for causal attention, where the scale of a
    // block's values would depend on what a query must not see. Null where a level has none. First
    // blocks of attention_pack_rows keys, and their values, are packed for all heads into memory
    // for attention_packed_floats.
    size_t (*attention_packed_floats)(const AttentionArgs& args);
    void (*attention_pack)(const AttentionArgs& args, Range key_blocks, float* packed);
    int64_t attention_pack_rows;
    bool (*attention_fast)(const AttentionArgs& args, const float* packed, int head,
                           Range query_rows, Scratch& scratch);
    int64_t attention_fast_piece_rows;

    // Adds sum and sum of squares of each group over pixels [begin, end) to sums[2 * g], sums[2 * g
    // + 1].
    void (*group_sums)(const GroupNormArgs& args, Range pixels, double* sums);

    // Output image rows [begin, end), all columns and channels. Here and below row 0 of `out` and
    // `add` is that of the first row of x, also where that is only a neighbour (`above`).
    bool (*conv2d)(const Conv2dArgs& args, Range out_rows, Scratch& scratch);
    int64_t conv2d_piece_rows; // image rows of one piece

    // The same for 3x3 kernels with fewer multiplications, each a little less exact; null where a
    // level has none. First the weights are transformed, in panels of winograd_panel output
    // channels, into memory for winograd_weight_floats; then blocks of tiles are independent.
    size_t (*winograd_weight_floats)(const Conv2dArgs& args);
    void (*winograd_weights)(const Conv2dArgs& args, Range panels, float* transformed);
    bool (*winograd)(const Conv2dArgs& args, const float* transformed, const TileBlock& block,
                     Scratch& scratch);
    int64_t winograd_panel;
};

// Kernel levels, worst first. Each stands on another one (`below`): its overlay replaces the
// entries for which it has a better kernel and leaves the rest.
enum class Level {
    kGeneric,
    kAvx2,
    kAvxVnni,
    kAvx512,
    kAmx,
    kNeon,
    kDotprod,
    kI8mm,
};

struct LevelInfo {
    Level level;
    const char* name; // as in BONSAI_CPU
    Level below;      // kGeneric for kGeneric itself
    uint32_t needs;   // bits of features.h, beyond those of `below`
    void (*overlay)(KernelTable& table);
};

// The levels that this build holds, worst first: those of its architecture.
struct LevelList {
    const LevelInfo* first;
    const LevelInfo* last;
    const LevelInfo* begin() const { return first; }
    const LevelInfo* end() const { return last; }
};
LevelList level_list();
const LevelInfo& level_info(Level level);

// The table of a level of level_list(), built from generic upwards.
const KernelTable& kernel_table(Level level);

// One overlay for each level and family of ops.
void overlay_generic(KernelTable& table);
void overlay_generic_quantize(KernelTable& table); // quantize_rows, sum_codes
void overlay_generic_linear(KernelTable& table);   // the above, dequantize_row, linear_*
void overlay_generic_rows(KernelTable& table);     // norms, rope, swiglu, silu, affine, group_sums
void overlay_generic_attention(KernelTable& table);
void overlay_generic_conv(KernelTable& table);
void overlay_avx2(KernelTable& table);
void overlay_avx2_linear(KernelTable& table);
void overlay_avx2_rows(KernelTable& table);
void overlay_avx2_attention(KernelTable& table);
void overlay_avx2_attention_fast(KernelTable& table);
void overlay_avx2_conv(KernelTable& table);
void overlay_avx2_winograd(KernelTable& table);
void overlay_avxvnni(KernelTable& table); // linear_fast
void overlay_avx512(KernelTable& table);
void overlay_avx512_linear(KernelTable& table); // linear_fast
void overlay_avx512_attention_fast(KernelTable& table);
void overlay_avx512_winograd(KernelTable& table);
void overlay_amx(KernelTable& table);
void overlay_amx_linear(KernelTable& table); // linear_fast
void overlay_amx_attention_fast(KernelTable& table);
void overlay_neon(KernelTable& table);
void overlay_neon_linear(KernelTable& table);
void overlay_neon_rows(KernelTable& table);
void overlay_neon_attention(KernelTable& table);
void overlay_neon_conv(KernelTable& table);
void overlay_neon_winograd(KernelTable& table);
void overlay_dotprod(KernelTable& table); // linear_fast
void overlay_i8mm(KernelTable& table);    // linear_fast

} // namespace bonsai::cpu
