// SPDX-License-Identifier: Apache-2.0
// Stopwatch: a device's backend that notes what the calling thread spends in its calls, stage by
// stage. What it waits for the device is counted apart from what reading back takes then.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "backends/wrapped.h"

namespace bonsai::bench {

class Stopwatch final : public EachOp<Stopwatch> {
  public:
    using Totals = std::map<std::string, double>; // seconds by kind of call
    // totals[*stage] grows; both outlive the backend.
    Stopwatch(std::unique_ptr<Backend> device, const std::string* stage,
              std::map<std::string, Totals>* totals)
        : EachOp(std::move(device)), stage_(*stage), totals_(*totals) {}

    Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) override {
        return timed("allocate", [&] { return WrappedBackend::allocate(bytes, out); });
    }
    Status write(const Tensor& to, const void* host) override {
        return timed("write", [&] { return WrappedBackend::write(to, host); });
    }
    Status read(const Tensor& from, void* host) override {
        BONSAI_TRY(synchronize());
        return timed("read", [&] { return WrappedBackend::read(from, host); });
    }
    Status read_beside(const Tensor& from, void* host) override {
        return timed("read beside", [&] { return WrappedBackend::read_beside(from, host); });
    }
    Status read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) override {
        BONSAI_TRY(synchronize());
        return timed("read", [&] { return WrappedBackend::read_pixels(from, rgb, finite); });
    }
    Status copy(const Tensor& from, const Tensor& to) override {
        return timed("queue", [&] { return WrappedBackend::copy(from, to); });
    }
    Status synchronize() override {
        return timed("wait", [&] { return WrappedBackend::synchronize(); });
    }
    Status begin_capture() override { return inner().begin_capture(); }
    Status end_capture(std::unique_ptr<Capture>* out) override {
        return timed("record", [&] { return inner().end_capture(out); });
    }
    Status replay(const Capture& capture) override {
        return timed("replay", [&] { return inner().replay(capture); });
    }

    template <typename Args> Status op(const char*, const Args& args, Op<Args> run) {
        return timed("queue", [&] { return (inner().*run)(args); });
    }

  protected:
    Status do_linear_pair(const LinearArgs& a, const LinearArgs& b) override {
        return timed("queue", [&] { return inner().linear_pair(a, b); });
    }

  private:
    template <typename Call> Status timed(const char* kind, const Call& call) {
        const auto start = std::chrono::steady_clock::now();
        Status status = call();
        totals_[stage_][kind] +=
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return status;
    }

    const std::string& stage_;
    std::map<std::string, Totals>& totals_;
};

} // namespace bonsai::bench
