// SPDX-License-Identifier: Apache-2.0
// Draws a picture several times and turns what it took, stage by stage and op by op, into records.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "record.h"

namespace bonsai::bench {

struct Case {
    std::string model; // path
    std::string device = "auto";
    int64_t width = 0, height = 0; // 0: the file's default
    int64_t steps = 0;
    int threads = 0;
    bool exact = false;
    int repeats = 3;
    uint64_t max_memory = 0;
    bool ops = false; // a row for each op, too
};

Status measure(const Case& what, std::vector<Record>* out);

} // namespace bonsai::bench
