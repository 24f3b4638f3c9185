// SPDX-License-Identifier: Apache-2.0
// Byte-pair merging: the merge table of a byte-level BPE vocabulary and its application to one
// pre-token.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace bonsai {

// Buffers that one encode call reuses from pre-token to pre-token.
struct BpeScratch {
    struct Symbol {
        int32_t id;
        int32_t previous, next; // positions of the neighbours, -1 at the ends
        uint32_t pair_rank;     // of the merge with the right neighbour; kNoRank if there is none
        int32_t pair_id;        // what that merge gives
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue; // min-heap of rank << 32 | position
};

class Bpe {
  public:
    // tokens in the byte-level alphabet. A token with usable[i] == 0 does not exist for the merges,
    // and one with usable[i] == 2 only where no other has the same text. The views are needed
    // during the call only.
    Status init(const std::vector<std::string_view>& tokens, const std::vector<uint8_t>& usable,
                const std::vector<std::string_view>& merges);

    // Appends the ids of one pre-token: always the applicable merge of lowest rank, of equals the
    // leftmost. O(n log n). n < 2^31.
    void encode(const uint8_t* bytes, size_t n, BpeScratch* scratch,
                std::vector<int32_t>* ids) const;

  private:
    struct Merge {
        uint32_t left, right;
        uint32_t rank; // kNoRank: the slot is free
        int32_t merged;
    };
    size_t slot(uint32_t left, uint32_t right, size_t most, size_t* walk) const;
    void set_pair(BpeScratch* scratch, int32_t position) const;

    int32_t byte_ids_[256] = {};
    std::vector<Merge> merges_; // open addressing, linear probing, a power of two of slots
    int shift_ = 0;             // 64 - log2(slots)
    size_t longest_walk_ = 0;   // from the slot where a merge belongs to where it is
};

// Text from a file made fit for a message: in quotes, printable ASCII, cut after 40 bytes.
std::string quoted(std::string_view text);

} // namespace bonsai
