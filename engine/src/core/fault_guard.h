// SPDX-License-Identifier: Apache-2.0
// FaultGuard: reads of a mapped file that has become shorter, or whose disk or network share went
// away, end in an error instead of a signal.
//
// POSIX systems answer such a read with SIGBUS. While any FaultGuard exists, this process has a
// handler for it that does one thing: if the address lies in a guarded range, it lays zero pages
// over the whole range and notes the fault there, so that the read goes on and its caller learns
// from faulted() that what was read is worthless. Every other SIGBUS, and those that a process
// sends, goes to the handler that was there before. The last FaultGuard puts that one back, unless
// the program has installed yet another one meanwhile.
//
// BONSAI_SIGBUS=off in the environment keeps the handler away. Windows does not let a mapped file
// shrink; what reads from a lost network share do there is up to the program.
#pragma once

#include <cstddef>

#include "core/status.h"

namespace bonsai {

struct GuardedRange;

class FaultGuard {
  public:
    FaultGuard() = default;
    ~FaultGuard() { release(); }
    FaultGuard(const FaultGuard&) = delete;
    FaultGuard& operator=(const FaultGuard&) = delete;

    // Guards a mapping that begins on a page and must stay mapped as long as this object lives.
    Status protect(const void* begin, size_t length);
    void release(); // before it is unmapped
    // Whether a read failed. The range holds zeros from then on.
    bool faulted() const;

  private:
    GuardedRange* range_ = nullptr;
};

} // namespace bonsai
