// SPDX-License-Identifier: Apache-2.0
// How a command ends early: thrown anywhere, reported once in main.
#pragma once

#include <stdexcept>
#include <string>

#include "bonsai.h"

namespace bonsai::cli {

// Documented in --help and README.md.
enum ExitCode {
    kExitOk = 0,
    kExitFailure = 1, // a file cannot be written, or a bug
    kExitUsage = 2,
    kExitModel = 3, // a file cannot be read, is damaged or not supported
    kExitMemory = 4,
    kExitSignal = 128, // + the signal: 130 after Ctrl-C
};

class Failure : public std::runtime_error {
  public:
    Failure(int exit_code, const std::string& message)
        : std::runtime_error(message), exit_code_(exit_code) {}
    int exit_code() const { return exit_code_; }

  private:
    int exit_code_;
};

// Throws when a call of the library failed, with its message. io_exit is what BONSAI_ERR_IO means
// here.
void check(bonsai_status status, int io_exit = kExitModel);

} // namespace bonsai::cli
