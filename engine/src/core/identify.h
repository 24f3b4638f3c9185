// SPDX-License-Identifier: Apache-2.0
// What a GGUF file is: a model of ours, or a part of one in the names of another program, told from
// its tensors and keys. Says what it lacks to be drawn with and which command adds that.
#pragma once

#include <string>
#include <vector>

#include "core/gguf.h"

namespace bonsai {

struct Identity {
    std::string what;       // one line
    bool is_bonsai = false; // made by bonsai-convert, as far as it says itself
    bool runnable = false;  // as far as names and types tell; opening it checks everything
    std::vector<std::string> missing; // parts that a picture needs
    std::string command;              // makes a file that can be drawn with; empty: none does
    std::vector<std::string> notes;   // what to know before relying on it
};

Identity identify(const GgufFile& file);

} // namespace bonsai
