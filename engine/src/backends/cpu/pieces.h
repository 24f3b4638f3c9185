// SPDX-License-Identifier: Apache-2.0
// How the CPU backend cuts ops whose results do not depend on where they are cut.
#pragma once

#include <algorithm>

#include "backends/cpu/table.h"

namespace bonsai::cpu {

constexpr int64_t kRowsPerPiece = 16;   // row ops: enough work to hide the hand-out of pieces
constexpr int64_t kLeastPieceCols = 96; // of a product that is stored

inline int64_t pieces_of(int64_t count, int64_t piece) {
    return (count + piece - 1) / piece;
}

inline Range piece_range(int64_t index, int64_t piece, int64_t count) {
    return {index * piece, std::min(count, (index + 1) * piece)};
}

// A product's piece halved, columns first and to multiples of `unit`, until each worker has three,
// so that none waits long for the last ones; but not below the least, since a piece unpacks its
// weights and reads its rows.
inline PieceSize for_workers(PieceSize piece, int workers, int64_t all_rows, int64_t all_cols,
                             int64_t least_cols, int64_t unit) {
    constexpr int64_t kEach = 3, kLeastRows = 192;
    const auto few = [&] {
        return pieces_of(all_rows, piece.rows) * pieces_of(all_cols, piece.cols) < kEach * workers;
    };
    while (piece.cols >= 2 * least_cols && few())
        piece.cols = piece.cols / 2 / unit * unit;
    while (piece.rows >= 2 * kLeastRows && few())
        piece.rows /= 2;
    return piece;
}

// Wide pieces, and narrow ones at the end, as many as give each worker about the work of a wide
// one: they are taken in order, and who is slow or late then holds the others up for a narrow one
// only.
struct Taper {
    int64_t count; // what is cut
    int64_t wide, narrow;
    int64_t wides; // pieces

    // Of a loop over `others` things for each piece.
    static Taper of(int64_t count, int64_t wide, int64_t narrow, int64_t others, int workers) {
        const int64_t pieces = pieces_of(count, wide);
        const int64_t last = narrow < wide && workers > 1 ? pieces_of(workers, others) : 0;
        return {count, wide, narrow, std::max<int64_t>(0, pieces - last)};
    }
    int64_t pieces() const {
        return wides + pieces_of(std::max<int64_t>(0, count - wides * wide), narrow);
    }
    Range range(int64_t index) const {
        if (index < wides) return piece_range(index, wide, count);
        const Range narrows = piece_range(index - wides, narrow, count - wides * wide);
        return {wides * wide + narrows.begin, wides * wide + narrows.end};
    }
};

// Pieces of a product. Those of the same rows follow each other, so that a worker's next piece
// often finds its rows in the cache; narrow ones are the last of all.
struct ProductPieces {
    int64_t all_rows, piece_rows;
    Taper cols;

    static ProductPieces of(int64_t rows, int64_t cols, const PieceSize& piece, int64_t narrow,
                            int workers) {
        return {rows, piece.rows,
                Taper::of(cols, piece.cols, narrow, pieces_of(rows, piece.rows), workers)};
    }
    int64_t count() const { return row_pieces() * cols.pieces(); }
    Range rows(int64_t index) const {
        const int64_t each = index < wides() ? cols.wides : cols.pieces() - cols.wides;
        return piece_range(within(index) / each, piece_rows, all_rows);
    }
    Range columns(int64_t index) const {
        if (index < wides()) return cols.range(index % cols.wides);
        return cols.range(cols.wides + within(index) % (cols.pieces() - cols.wides));
    }

  private:
    int64_t row_pieces() const { return pieces_of(all_rows, piece_rows); }
    int64_t wides() const { return row_pieces() * cols.wides; }
    int64_t within(int64_t index) const { return index < wides() ? index : index - wides(); }
};

// Pieces of the same rows of several things, such as heads; those of the last things narrow, as
// above.
struct TaperedRows {
    int64_t rows;
    int64_t wide, narrow;
    int64_t things, wide_things;

    static TaperedRows of(int64_t rows, int64_t wide, int64_t narrow, int64_t things, int workers) {
        const int64_t pieces = pieces_of(rows, wide);
        const int64_t last = pieces > 1 && workers > 1 ? pieces_of(workers, pieces) : 0;
        return {rows, wide, narrow, things, std::max<int64_t>(0, things - last)};
    }
    int64_t wides() const { return wide_things * pieces_of(rows, wide); }
    int64_t pieces() const { return wides() + (things - wide_things) * pieces_of(rows, narrow); }
    int64_t thing(int64_t index) const {
        return index < wides() ? index / pieces_of(rows, wide)
                               : wide_things + (index - wides()) / pieces_of(rows, narrow);
    }
    Range range(int64_t index) const {
        return index < wides()
                   ? piece_range(index % pieces_of(rows, wide), wide, rows)
                   : piece_range((index - wides()) % pieces_of(rows, narrow), narrow, rows);
    }
};

Status no_memory(const char* what, size_t bytes);
Status no_scratch(const char* op);

} // namespace bonsai::cpu
