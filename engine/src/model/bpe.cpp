// SPDX-License-Identifier: Apache-2.0
#include "model/bpe.h"

#include <algorithm>
#include <functional>
#include <string>

#include "model/unicode.h"

namespace bonsai {
namespace {

constexpr uint32_t kNoRank = UINT32_MAX;
// Entries that a lookup passes at most. With honest entries the longest of a million such walks has
// some 200; files made to be slow are refused.
constexpr size_t kMaxWalk = 1024;

// Slots for n entries: at most two thirds full, a power of two, at least 2.
int log2_slots(size_t n) {
    int bits = 1;
    while ((size_t{1} << bits) < n + n / 2)
        ++bits;
    return bits;
}

// The GPT-2 alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards
// in order.
std::string byte_token(int byte) {
    const auto printable = [](int b) {
        return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    };
    char32_t code_point = static_cast<char32_t>(byte);
    if (!printable(byte)) {
        code_point = 256;
        for (int b = 0; b < byte; ++b)
            code_point += printable(b) ? 0 : 1;
    }
    uint8_t bytes[4];
    const int length = encode_utf8(code_point, bytes);
    return std::string(reinterpret_cast<const char*>(bytes), length);
}

// Token text to id; needed while the merges are read. Views into the file, no copies.
class TokenIndex {
  public:
    explicit TokenIndex(const std::vector<std::string_view>& tokens)
        : tokens_(tokens), slots_(size_t{1} << log2_slots(tokens.size()), Slot{0, -1}) {}

    // The id under which the text is known after the call: `id`, or that of an earlier equal one;
    // -1 if the way to its place is too long.
    int32_t insert(int32_t id) {
        const uint32_t h = hash(tokens_[id]);
        size_t walk = 0;
        Slot* const found = find_slot(tokens_[id], h, kMaxWalk, &walk);
        if (found == nullptr) return -1;
        if (found->id < 0) *found = {h, id};
        longest_ = std::max(longest_, walk);
        return found->id;
    }

    // -1 if there is no such token.
    int32_t find(std::string_view text) {
        size_t walk = 0;
        const Slot* const found = find_slot(text, hash(text), longest_, &walk);
        return found == nullptr ? -1 : found->id;
    }

  private:
    struct Slot {
        uint32_t hash;
        int32_t id; // -1: free
    };

    static uint32_t hash(std::string_view text) { // FNV-1a, mixed for use of the low bits
        uint64_t h = 0xcbf29ce484222325u;
        for (char c : text)
            h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
        return static_cast<uint32_t>(h ^ h >> 32);
    }

    // Where the text is or would be; null if that is more than `most` slots away.
    Slot* find_slot(std::string_view text, uint32_t h, size_t most, size_t* walk) {
        const size_t mask = slots_.size() - 1;
        for (size_t i = h & mask; *walk <= most; i = (i + 1) & mask, ++*walk) {
            Slot& slot = slots_[i];
            if (slot.id < 0 || (slot.hash == h && tokens_[slot.id] == text)) return &slot;
        }
        return nullptr;
    }

    const std::vector<std::string_view>& tokens_;
    std::vector<Slot> slots_;
    size_t longest_ = 0; // walk to an entry
};

Status index_tokens(const std::vector<std::string_view>& tokens, const std::vector<uint8_t>& usable,
                    TokenIndex* index) {
    for (const uint8_t pass : {uint8_t{1}, uint8_t{2}}) {
        for (size_t i = 0; i < tokens.size(); ++i) {
            const auto id = static_cast<int32_t>(i);
            if (usable[i] != pass) continue;
            const int32_t known = index->insert(id);
            if (known < 0)
                return fail(ErrorCode::kFormat,
                            "tokenizer token %d, %s, and more than %zu others are chosen so that "
                            "finding them takes long",
                            id, quoted(tokens[i]).c_str(), kMaxWalk);
            if (known != id && usable[known] == pass)
                return fail(ErrorCode::kFormat,
                            "tokenizer tokens %d and %d are both %s; expected distinct tokens",
                            known, id, quoted(tokens[i]).c_str());
        }
    }
    return {};
}

} // namespace

std::string quoted(std::string_view text) {
    std::string out = "\"";
    for (char c : text.substr(0, 40)) {
        if (c >= 0x20 && c < 0x7F)
            out += c;
        else
            out += format("\\x%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
    }
    return out + (text.size() > 40 ? "\"..." : "\"");
}

Status Bpe::init(const std::vector<std::string_view>& tokens, const std::vector<uint8_t>& usable,
                 const std::vector<std::string_view>& merges) {
    TokenIndex index(tokens);
    BONSAI_TRY(index_tokens(tokens, usable, &index));
    for (int byte = 0; byte < 256; ++byte) {
        byte_ids_[byte] = index.find(byte_token(byte));
        if (byte_ids_[byte] < 0)
            return fail(ErrorCode::kFormat,
                        "tokenizer tokens: none for the byte 0x%02x; expected all 256 bytes in the "
                        "byte-level alphabet",
                        static_cast<unsigned>(byte));
    }

    const int bits = log2_slots(merges.size());
    shift_ = 64 - bits;
    merges_.assign(size_t{1} << bits, Merge{0, 0, kNoRank, 0});
    std::string joined;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const std::string_view text = merges[rank];
        const size_t space = text.find(' ');
        if (space == 0 || space + 1 >= text.size() || space == std::string_view::npos ||
            text.find(' ', space + 1) != std::string_view::npos)
            return fail(ErrorCode::kFormat,
                        "tokenizer merge %zu is %s; expected two tokens and one space between",
                        rank, quoted(text).c_str());
        const std::string_view parts[2] = {text.substr(0, space), text.substr(space + 1)};
        joined.assign(parts[0]).append(parts[1]);
        const int32_t ids[3] = {index.find(parts[0]), index.find(parts[1]), index.find(joined)};
        for (int i = 0; i < 3; ++i) {
            if (ids[i] < 0)
                return fail(ErrorCode::kFormat,
                            "tokenizer merge %zu, %s: %s is not in the vocabulary", rank,
                            quoted(text).c_str(),
                            quoted(i < 2 ? parts[i] : std::string_view(joined)).c_str());
        }
        // A pair listed twice keeps the last rank, as in the `tokenizers` library.
        const auto left = static_cast<uint32_t>(ids[0]), right = static_cast<uint32_t>(ids[1]);
        size_t walk = 0;
        const size_t place = slot(left, right, kMaxWalk, &walk);
        if (walk > kMaxWalk)
            return fail(ErrorCode::kFormat,
                        "tokenizer merge %zu, %s, and more than %zu others are chosen so that "
                        "finding them takes long",
                        rank, quoted(text).c_str(), kMaxWalk);
        merges_[place] = {left, right, static_cast<uint32_t>(rank), ids[2]};
        longest_walk_ = std::max(longest_walk_, walk);
    }
    return {};
}

// Where the pair is, or the free slot where it would be; *walk is above `most` if neither is within
// so many slots.
size_t Bpe::slot(uint32_t left, uint32_t right, size_t most, size_t* walk) const {
    const uint64_t key = static_cast<uint64_t>(left) << 32 | right;
    const size_t mask = merges_.size() - 1;
    // Fibonacci hashing; the first xor brings the left id into the low half.
    size_t i = static_cast<size_t>(((key ^ key >> 29) * 0x9E3779B97F4A7C15u) >> shift_);
    while (merges_[i].rank != kNoRank && (merges_[i].left != left || merges_[i].right != right) &&
           ++*walk <= most)
        i = (i + 1) & mask;
    return i;
}

// Looks up the merge of the symbol with its right neighbour.
void Bpe::set_pair(BpeScratch* scratch, int32_t position) const {
    BpeScratch::Symbol& symbol = scratch->symbols[position];
    symbol.pair_rank = kNoRank;
    if (symbol.next < 0) return;
    size_t walk = 0;
    const Merge& merge = merges_[slot(static_cast<uint32_t>(symbol.id),
                                      static_cast<uint32_t>(scratch->symbols[symbol.next].id),
                                      longest_walk_, &walk)];
    if (walk > longest_walk_) return; // no merge is so far from its place
    symbol.pair_rank = merge.rank;
    symbol.pair_id = merge.merged;
}

void Bpe::encode(const uint8_t* bytes, size_t n, BpeScratch* scratch,
                 std::vector<int32_t>* ids) const {
    if (n == 0) return;
    auto& symbols = scratch->symbols;
    auto& queue = scratch->queue;
    const auto entry = [&symbols](int32_t position) {
        return static_cast<uint64_t>(symbols[position].pair_rank) << 32 |
               static_cast<uint32_t>(position);
    };
    const auto count = static_cast<int32_t>(n);
    symbols.resize(n);
    for (int32_t i = 0; i < count; ++i)
        symbols[i] = {byte_ids_[bytes[i]], i - 1, i + 1 < count ? i + 1 : -1, kNoRank, 0};
    queue.clear();
    for (int32_t i = 0; i + 1 < count; ++i) {
        set_pair(scratch, i);
        if (symbols[i].pair_rank != kNoRank) queue.push_back(entry(i));
    }
    std::make_heap(queue.begin(), queue.end(), std::greater<>());

    while (!queue.empty()) {
        const auto position = static_cast<int32_t>(queue.front() & UINT32_MAX);
        const auto rank = static_cast<uint32_t>(queue.front() >> 32);
        std::pop_heap(queue.begin(), queue.end(), std::greater<>());
        queue.pop_back();
        BpeScratch::Symbol& symbol = symbols[position];
        if (symbol.pair_rank != rank) // a neighbour was merged away since this entry was made
            continue;
        BpeScratch::Symbol& right = symbols[symbol.next];
        symbol.id = symbol.pair_id;
        symbol.next = right.next;
        right.pair_rank = kNoRank;
        if (symbol.next >= 0) symbols[symbol.next].previous = position;
        for (int32_t changed : {symbol.previous, position}) {
            if (changed < 0) continue;
            set_pair(scratch, changed);
            if (symbols[changed].pair_rank != kNoRank) {
                queue.push_back(entry(changed));
                std::push_heap(queue.begin(), queue.end(), std::greater<>());
            }
        }
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next) // position 0 is never merged away
        ids->push_back(symbols[i].id);
}

} // namespace bonsai
