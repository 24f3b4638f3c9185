// SPDX-License-Identifier: Apache-2.0
// Rows of a benchmark: how they are written and how a later run finds them again.
#pragma once

#include <string>
#include <vector>

namespace bonsai::bench {

struct Record {
    std::string model;     // "ternary 4.0B, 3.13 GB"
    std::string what;      // a stage ("step"), or stage and op ("step: linear ptq1_0 ...")
    std::string size;      // "512x512"
    std::string level;     // instruction set, as in BONSAI_CPU
    std::string precision; // "fast" or "exact"
    int threads = 0;
    int repeats = 0;
    double seconds = 0;        // wall clock, median
    double spread = 0;         // (slowest - fastest) / median
    double cpu_seconds = 0;    // user and system, all threads, median
    double giga_ops = 0;       // work of one run; 0: not counted
    double share = 0;          // of the ceiling measured beside it; 0: none
    double peak_megabytes = 0; // resident memory; 0: not of this row

    double rate() const { return giga_ops > 0 && seconds > 0 ? giga_ops / seconds : 0; } // GOP/s
    // Rows of two runs that may be compared have the same key.
    std::string key() const;
};

std::string to_markdown(const std::vector<Record>& records, const std::vector<Record>& old);
std::string to_csv(const std::vector<Record>& records);
std::string to_json(const std::vector<Record>& records);

// Reads what to_json wrote. False, with a reason, for anything else.
bool read_json(const std::string& path, std::vector<Record>* out, std::string* why);

} // namespace bonsai::bench
