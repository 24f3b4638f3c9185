// SPDX-License-Identifier: Apache-2.0
// Everything a person reads while the program works, on standard error: progress, notes, warnings,
// errors. On a terminal the progress is one line that is written again and again, elsewhere a line
// for each finished step.
#pragma once

#include <chrono>
#include <string>

#include "bonsai.h"

namespace bonsai::cli {

class Console {
  public:
    explicit Console(int verbosity); // 0 quiet, 1 normal, 2 verbose
    ~Console() { clear(); }
    Console(const Console&) = delete;
    Console& operator=(const Console&) = delete;

    void note(const std::string& line);   // not with -q
    void detail(const std::string& line); // only with -v
    void always(const std::string& line); // even with -q
    void warning(const std::string& line);
    void error(const std::string& line);

    void progress(const bonsai_progress& p);
    // Of another job than drawing: "verify  41%".
    void progress(const std::string& job, double fraction);
    // Takes the progress line away.
    void clear();

  private:
    void print(const char* label, const char* color, const std::string& line);
    void rewrite(const std::string& line);
    bool due();

    int verbosity_;
    bool terminal_; // can rewrite a line
    bool color_;
    bool line_shown_ = false;
    std::chrono::steady_clock::time_point last_{};
    bonsai_progress shown_{}; // what the last plain line was about
};

} // namespace bonsai::cli
