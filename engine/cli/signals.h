// SPDX-License-Identifier: Apache-2.0
// Ctrl-C and termination: the first signal asks the engine to stop, the second one ends the program
// at once.
#pragma once

#include "bonsai.h"

namespace bonsai::cli {

void install_signal_handlers();

// The context a signal cancels; NULL before it is closed.
void set_signal_context(bonsai_context* ctx);

// The signal that arrived, 0 when none did.
int received_signal();

// Throws Failure with the exit code of the signal that arrived, if one did.
void stop_if_signalled();

// While one lives, a second signal does not end the program: a file is being written.
class CriticalSection {
  public:
    CriticalSection();
    ~CriticalSection();
    CriticalSection(const CriticalSection&) = delete;
    CriticalSection& operator=(const CriticalSection&) = delete;
};

// While one lives, the first signal ends the program already: it waits for input, or only looks,
// and has begun nothing.
class IdleSection {
  public:
    IdleSection();
    ~IdleSection();
    IdleSection(const IdleSection&) = delete;
    IdleSection& operator=(const IdleSection&) = delete;
};

} // namespace bonsai::cli
