// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"

#include <algorithm>

#include "core/planted.h"
#include "core/utf8.h"
#include "model/unicode.h"

namespace bonsai {
namespace {

// Token types of GGUF that the engine knows.
constexpr int32_t kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5;

bool is_newline(char32_t c) {
    return c == '\r' || c == '\n';
}

// Length of (?i:'s|'t|'re|'ve|'m|'ll|'d) at text[0], 0 if it does not match there.
size_t match_contraction(const char32_t* text, size_t n) {
    if (n < 2 || text[0] != '\'') return 0;
    const auto lower = [](char32_t c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; };
    const char32_t second = lower(text[1]);
    const char32_t third = n > 2 ? lower(text[2]) : 0;
    switch (second) {
    case 's':
    case 0x17F: // LATIN SMALL LETTER LONG S: the only other character that folds to one of these
                // letters
    case 't':
    case 'm':
    case 'd':
        return 2;
    case 'r':
    case 'v':
        return third == 'e' ? 3 : 0;
    case 'l':
        return third == 'l' ? 3 : 0;
    default:
        return 0;
    }
}

// Length of \s*[\r\n]+|\s+(?!\S)|\s+ at text[0], which is a space.
size_t match_spaces(const char32_t* text, const CharClass* classes, size_t n) {
    size_t end = 0, after_newline = 0;
    for (; end < n && classes[end] == CharClass::kSpace; ++end) {
        if (is_newline(text[end])) after_newline = end + 1;
    }
    if (after_newline > 0) return after_newline;
    // The last space of a run belongs to the word behind it, unless it is the only one.
    return end < n && end > 1 ? end - 1 : end;
}

// Length, at least 1, of the piece that the Qwen regex cuts off at text[0], n >= 1:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ?[^\s\p{L}\p{N}]+[\r\n]* |
//   \s*[\r\n]+ | \s+(?!\S) | \s+          (the blank of " ?" is part of the pattern)
// The first alternative that matches wins, and one of them does for every character.
size_t match_piece(const char32_t* text, const CharClass* classes, size_t n) {
    const auto run = [=](size_t from, CharClass wanted) {
        while (from < n && classes[from] == wanted)
            ++from;
        return from;
    };
    const size_t contraction = match_contraction(text, n);
    if (contraction > 0) return contraction;
    if (classes[0] == CharClass::kLetter) return run(1, CharClass::kLetter);
    if (classes[0] == CharClass::kNumber) return 1;
    if (n > 1 && classes[1] == CharClass::kLetter && !is_newline(text[0]))
        return run(2, CharClass::kLetter);
    const size_t skip = text[0] == ' ' ? 1 : 0;
    if (skip < n && classes[skip] == CharClass::kOther) {
        size_t end = run(skip + 1, CharClass::kOther);
        while (end < n && is_newline(text[end]))
            ++end;
        return end;
    }
    return match_spaces(text, classes, n);
}

} // namespace

struct Tokenizer::Scratch {
    std::vector<char32_t> text;
    std::vector<CharClass> classes;
    std::vector<uint8_t> bytes;
    BpeScratch bpe;
};

Status Tokenizer::create(const TokenizerData& data, std::unique_ptr<Tokenizer>* out) {
    std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
    BONSAI_TRY(tokenizer->init(data));
    *out = std::move(tokenizer);
    return {};
}

Status Tokenizer::init(const TokenizerData& data) {
    const size_t size = data.tokens.size();
    if (size == 0 || size > INT32_MAX)
        return fail(ErrorCode::kFormat, "tokenizer: %zu tokens; expected 1 to 2147483647", size);
    if (data.types.size() != size)
        return fail(ErrorCode::kFormat,
                    "tokenizer: %zu token types for %zu tokens; expected as many",
                    data.types.size(), size);
    if (data.merges.size() >= UINT32_MAX)
        return fail(ErrorCode::kFormat, "tokenizer: %zu merges; expected less than 2^32 - 1",
                    data.merges.size());
    if (data.pad_id < 0 || static_cast<size_t>(data.pad_id) >= size)
        return fail(ErrorCode::kFormat, "tokenizer: padding id %d; expected 0 to %zu", data.pad_id,
                    size - 1);
    vocab_size_ = static_cast<int32_t>(size);
    pad_id_ = data.pad_id;

    // For the merges an added token counts only where no normal one has its text (see Bpe::init):
    // some files make an entry of the BPE vocabulary an added token as well.
    std::vector<uint8_t> usable(size);
    for (size_t i = 0; i < size; ++i) {
        const int32_t type = data.types[i];
        if (type == kControl || type == kUserDefined)
            BONSAI_TRY(add_token(data.tokens[i], static_cast<int32_t>(i)));
        else if (type != kNormal && type != kUnused)
            return fail(ErrorCode::kUnsupported,
                        "tokenizer token %zu, %s, is of type %d; expected 1, 3, 4 or 5", i,
                        quoted(data.tokens[i]).c_str(), type);
        usable[i] = type == kNormal ? 1 : type == kUnused ? 0 : 2;
    }
    added_.build();
    return bpe_.init(data.tokens, usable, data.merges);
}

Status Tokenizer::add_token(std::string_view text, int32_t id) {
    if (text.empty() && planted(4) == 0)
        return fail(ErrorCode::kFormat, "tokenizer token %d is an added token without text", id);
    if (text.size() > kMaxAddedBytes)
        return fail(ErrorCode::kFormat,
                    "tokenizer token %d is added and has %zu bytes; expected "
                    "at most %zu",
                    id, text.size(), kMaxAddedBytes);
    if (added_.size() == kMaxAdded)
        return fail(ErrorCode::kFormat,
                    "tokenizer: token %d is one added token too many; "
                    "expected at most %zu",
                    id, kMaxAdded);
    // Only whole characters may be cut out of a text.
    if (find_invalid_utf8(text) != std::string_view::npos)
        return fail(ErrorCode::kFormat, "tokenizer token %d, %s, is not valid UTF-8", id,
                    quoted(text).c_str());
    added_.add(text, id);
    return {};
}

void Tokenizer::encode_plain(std::string_view text, Scratch* scratch,
                             std::vector<int32_t>* ids) const {
    auto& points = scratch->text;
    auto& classes = scratch->classes;
    points.clear();
    decode_utf8(text, &points);
    normalize_nfc(&points);
    classes.resize(points.size());
    std::transform(points.begin(), points.end(), classes.begin(), char_class);

    for (size_t begin = 0; begin < points.size();) {
        const size_t end =
            begin + match_piece(&points[begin], &classes[begin], points.size() - begin);
        scratch->bytes.clear();
        for (; begin < end; ++begin) {
            uint8_t bytes[4];
            const int length = encode_utf8(points[begin], bytes);
            scratch->bytes.insert(scratch->bytes.end(), bytes, bytes + length);
        }
        bpe_.encode(scratch->bytes.data(), scratch->bytes.size(), &scratch->bpe, ids);
    }
}

Status Tokenizer::check_text(std::string_view text) {
    if (text.size() > kMaxTextBytes)
        return fail(ErrorCode::kArgument, "prompt of %zu bytes; expected at most %zu", text.size(),
                    kMaxTextBytes);
    const size_t invalid = find_invalid_utf8(text);
    if (invalid != std::string_view::npos)
        return fail(ErrorCode::kArgument, "prompt: invalid UTF-8 at byte %zu (0x%02x)", invalid,
                    static_cast<unsigned>(static_cast<uint8_t>(text[invalid])));
    return {};
}

Status Tokenizer::encode(std::string_view text, std::vector<int32_t>* ids) const {
    ids->clear();
    BONSAI_TRY(check_text(text));
    Scratch scratch;
    for (size_t from = 0; from < text.size();) {
        size_t position = text.size();
        const AddedToken* added = added_.find(text, from, &position);
        encode_plain(text.substr(from, position - from), &scratch, ids);
        from = position;
        if (added != nullptr) {
            ids->push_back(added->id);
            from += added->text.size();
        }
    }
    return {};
}

Status Tokenizer::encode_padded(std::string_view text, int32_t max_tokens,
                                std::vector<int32_t>* ids, int32_t* real, bool* truncated) const {
    if (max_tokens < 1)
        return fail(ErrorCode::kArgument, "max_tokens is %d; expected at least 1", max_tokens);
    BONSAI_TRY(encode(text, ids));
    const auto limit = static_cast<size_t>(max_tokens);
    *truncated = ids->size() > limit;
    *real = static_cast<int32_t>(std::min(ids->size(), limit));
    ids->resize(limit, pad_id_);
    return {};
}

} // namespace bonsai
