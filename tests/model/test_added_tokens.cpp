// SPDX-License-Identifier: Apache-2.0
// AddedTokens against the plainest search there is, on random tokens and texts of few letters,
// where tokens begin and end within each other.
#include "model/added_tokens.h"

#include <random>
#include <string>
#include <vector>

#include "test.h"

using bonsai::AddedToken;
using bonsai::AddedTokens;

namespace {

std::string random_text(std::mt19937& random, size_t longest) {
    std::string text(1 + random() % longest, ' ');
    for (char& c : text)
        c = "ab\x80\xFF"[random() % 4]; // bytes above 127 sort behind the others
    return text;
}

// By definition: for each place all tokens; of equal ones the first id.
const AddedToken* search(const std::vector<AddedToken>& tokens, const std::string& text,
                         size_t from, size_t* position) {
    for (*position = from; *position < text.size(); ++*position) {
        const AddedToken* longest = nullptr;
        for (const AddedToken& token : tokens)
            if (text.compare(*position, token.text.size(), token.text) == 0 &&
                (longest == nullptr || token.text.size() > longest->text.size()))
                longest = &token;
        if (longest != nullptr) return longest;
    }
    return nullptr;
}

} // namespace

TEST(finds_what_a_plain_search_finds) {
    std::mt19937 random(1);
    int found_count = 0;
    for (int round = 0; round < 300; ++round) {
        std::vector<AddedToken> plain;
        AddedTokens tree;
        for (size_t i = random() % 12; i > 0; --i) {
            plain.push_back({random_text(random, 5), static_cast<int32_t>(plain.size())});
            tree.add(plain.back().text, plain.back().id);
        }
        tree.build();
        CHECK(tree.size() == plain.size());
        const std::string text = random_text(random, 40);
        for (size_t from = 0; from <= text.size(); ++from) {
            size_t expected_at = 0, at = 0;
            const AddedToken* expected = search(plain, text, from, &expected_at);
            const AddedToken* found = tree.find(text, from, &at);
            CHECK((expected == nullptr) == (found == nullptr));
            if (expected == nullptr || found == nullptr) continue;
            CHECK(found->id == expected->id && at == expected_at);
            ++found_count;
        }
    }
    CHECK(found_count > 1000);
}

TEST(nothing_to_find) {
    AddedTokens tree;
    tree.build();
    size_t at = 7;
    CHECK(tree.find("text", 0, &at) == nullptr && at == 7);
}
