// SPDX-License-Identifier: Apache-2.0
#include "model/added_tokens.h"

#include <algorithm>
#include <tuple>

namespace bonsai {

// Breadth first: the children of a node are appended together, each with the range of tokens that
// begin with the bytes on its way.
void AddedTokens::build() {
    struct Range {
        size_t begin, end, depth;
    };
    std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
        return std::tie(a.text, a.id) < std::tie(b.text, b.id);
    });
    nodes_.assign(1, Node());
    std::vector<Range> ranges{{0, tokens_.size(), 0}};
    for (size_t n = 0; n < nodes_.size(); ++n) {
        auto [begin, end, depth] = ranges[n];
        if (begin < end && tokens_[begin].text.size() == depth)
            nodes_[n].token = static_cast<int32_t>(begin);
        while (begin < end && tokens_[begin].text.size() == depth)
            ++begin;
        nodes_[n].children = static_cast<uint32_t>(nodes_.size());
        while (begin < end) {
            const char byte = tokens_[begin].text[depth];
            size_t next = begin + 1;
            while (next < end && tokens_[next].text[depth] == byte)
                ++next;
            Node node;
            node.byte = static_cast<uint8_t>(byte);
            nodes_.push_back(node);
            ranges.push_back({begin, next, depth + 1});
            ++nodes_[n].count;
            begin = next;
        }
    }
}

const AddedTokens::Node* AddedTokens::child(const Node& node, uint8_t byte) const {
    const Node* const begin = nodes_.data() + node.children;
    const Node* const end = begin + node.count;
    const Node* const found = std::lower_bound(
        begin, end, byte, [](const Node& candidate, uint8_t b) { return candidate.byte < b; });
    return found != end && found->byte == byte ? found : nullptr;
}

const AddedToken* AddedTokens::longest_at(std::string_view text) const {
    const AddedToken* longest = nullptr;
    const Node* node = &nodes_[0];
    for (size_t i = 0; node != nullptr; ++i) {
        if (node->token >= 0) longest = &tokens_[static_cast<size_t>(node->token)];
        node = i < text.size() ? child(*node, static_cast<uint8_t>(text[i])) : nullptr;
    }
    return longest;
}

const AddedToken* AddedTokens::find(std::string_view text, size_t from, size_t* position) const {
    for (size_t i = from; i < text.size(); ++i) {
        if (const AddedToken* found = longest_at(text.substr(i))) {
            *position = i;
            return found;
        }
    }
    return nullptr;
}

} // namespace bonsai
