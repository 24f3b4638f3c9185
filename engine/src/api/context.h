// SPDX-License-Identifier: Apache-2.0
// An open model, and who may use it when: any number of threads are inside, one computes, and
// closing waits for all.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "bonsai.h"
#include "model/pipeline.h"

struct bonsai_context {
    std::unique_ptr<bonsai::Pipeline> pipeline;
    mutable std::mutex mutex; // guards what follows
    mutable std::condition_variable changed;
    mutable int calls = 0; // that are inside, waiting ones included: close waits for all
    bool busy = false;     // one of them computes
    std::thread::id owner; // the thread that does
    bool closing = false;
    bool orphaned = false; // closed from a callback: the last call inside releases it
};

namespace bonsai::api {

// Keeps the context alive during one call. The last one releases a context that was closed inside.
class Visit {
  public:
    explicit Visit(const bonsai_context* ctx);
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

  private:
    const bonsai_context* ctx_;
};

// Holds the context for one computation; refuses a callback that calls back.
class Turn {
  public:
    explicit Turn(bonsai_context* ctx) : visit_(ctx), ctx_(ctx) {}
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    Status take(); // waits until no other call computes

  private:
    Visit visit_;
    bonsai_context* ctx_;
    bool held_ = false;
};

// The caller's parameters, which may be NULL, and where and how they want to compute.
Status open_options(const bonsai_open_params* params, bonsai_open_params* p,
                    PipelineOptions* options);

} // namespace bonsai::api
