// SPDX-License-Identifier: Apache-2.0
// An opened model that closes itself and that Ctrl-C can reach.
#pragma once

#include "bonsai.h"
#include "console.h"
#include "options.h"

namespace bonsai::cli {

class Context {
  public:
    Context(const Options& options, Console& console);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    bonsai_context* get() const { return ctx_; }
    bonsai_model_info info() const;

  private:
    bonsai_context* ctx_ = nullptr;
};

} // namespace bonsai::cli
