// SPDX-License-Identifier: Apache-2.0
// ProfileBackend: a device's backend with a stop watch around every op. Ops of one kind, type and
// shape share a line.
#pragma once

#include <map>

#include "backends/wrapped.h"

namespace bonsai::bench {

// Wall clock and processor time of all threads of this process, in seconds.
struct Clock {
    double wall = 0;
    double cpu = 0;
    static Clock now();
};

struct OpTotal {
    int64_t calls = 0;
    double wall = 0;
    double cpu = 0;
    double giga_ops = 0; // multiplications and additions of linear, attention, conv2d; else 0
    bool bytes = false;  // done in int8: its ceiling is that of bytes
};

class ProfileBackend final : public EachOp<ProfileBackend> {
  public:
    using Totals = std::map<std::string, OpTotal>; // by "linear ptq1_0 1536x3072x27648"

    // Ops are added to totals[stage].
    ProfileBackend(std::unique_ptr<Backend> device, Precision precision, const std::string& stage,
                   std::map<std::string, Totals>* totals)
        : EachOp(std::move(device)), precision_(precision), stage_(stage), totals_(*totals) {}

    template <typename Args> Status op(const char* name, const Args& args, Op<Args> run) {
        const Clock start = Clock::now();
        BONSAI_TRY((inner().*run)(args));
        BONSAI_TRY(synchronize());
        note(describe(name, args), start);
        return Status();
    }

  private:
    struct Line {
        std::string name; // with type and shape
        double giga_ops = 0;
        bool bytes = false;
    };
    Line describe(const char* name, const LinearArgs& args) const;
    Line describe(const char* name, const AttentionArgs& args) const;
    Line describe(const char* name, const Conv2dArgs& args) const;
    // Of all others the shape of what they write, or work on in place.
    template <typename Args> Line describe(const char* name, const Args& args) const {
        return line(name, args.out);
    }
    Line describe(const char* name, const HeadNormRopeArgs& args) const {
        return line(name, args.x);
    }
    Line describe(const char* name, const GroupNormArgs& args) const { return line(name, args.x); }
    static Line line(const char* name, const Tensor& tensor);
    void note(const Line& line, const Clock& start);

    Precision precision_;
    const std::string& stage_; // the caller changes it as the pipeline goes on
    std::map<std::string, Totals>& totals_;
};

} // namespace bonsai::bench
