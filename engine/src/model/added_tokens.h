// SPDX-License-Identifier: Apache-2.0
// AddedTokens: finds the tokens that stand for themselves in a text, such as <|im_start|>, by
// walking a tree of their bytes. A look at one place costs no more steps than the longest token has
// bytes, however many tokens there are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bonsai {

struct AddedToken {
    std::string text;
    int32_t id;
};

class AddedTokens {
  public:
    size_t size() const { return tokens_.size(); }
    void add(std::string_view text, int32_t id) { tokens_.push_back({std::string(text), id}); }
    // Once, after the last add.
    void build();
    // The leftmost token at or behind `from`, of several at one place the longest; null if there is
    // none.
    const AddedToken* find(std::string_view text, size_t from, size_t* position) const;

  private:
    struct Node {
        uint32_t children = 0; // they stand side by side, by growing byte
        uint16_t count = 0;
        uint8_t byte = 0;   // that leads here
        int32_t token = -1; // that ends here
    };
    const Node* child(const Node& node, uint8_t byte) const;
    const AddedToken* longest_at(std::string_view text) const;

    std::vector<AddedToken> tokens_; // by text, those of one text by id
    std::vector<Node> nodes_;
};

} // namespace bonsai
