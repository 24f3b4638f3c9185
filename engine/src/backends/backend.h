// SPDX-License-Identifier: Apache-2.0
// Backend: what a device has to offer to run the pipeline. Model code is written once against this
// class and never names a backend: it allocates activations, hands over weights, queues ops and
// reads results back.
//
// Ops are queued in order and may run later; `synchronize` and `read` wait. Shapes are checked
// here, once for all backends.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "ops/ops.h"

namespace bonsai {

enum class Precision {
    kFast,  // int8 activations, one scale for each token and group; f16 where that is as fast
    kExact, // float activations
};

struct DeviceInfo {
    std::string id;       // "cpu", "cuda:0", ...
    std::string name;     // as the maker calls it
    std::string features; // instruction set or compute capability in use
    uint64_t memory_total = 0;
    uint64_t memory_free = 0;
    int threads = 0; // worker threads (CPU), 0 elsewhere
};

struct BackendOptions {
    int threads = 0; // 0: physical cores within affinity mask and cgroup quota
    Precision precision = Precision::kFast;
    // Bytes of device memory to stay below where weights can be given back for it; 0: what is free.
    // For devices with memory of their own.
    uint64_t max_memory = 0;
};

// Memory of one device; released with the object.
class Buffer {
  public:
    virtual ~Buffer() = default;
    void* data() const { return data_; }
    size_t size() const { return size_; }

  protected:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// A recorded sequence of ops with fixed addresses (a CUDA graph, a command buffer).
class Capture {
  public:
    virtual ~Capture() = default;
};

class Backend {
  public:
    virtual ~Backend() = default;
    virtual const DeviceInfo& device() const = 0;

    virtual uint64_t memory_free() const { return device().memory_free; } // now, bytes
    // Bytes of the device's own memory that are in use here; 0 where it is that of the process.
    virtual uint64_t memory_used() const { return 0; }

    // While the flag is set ops may end with kCancelled and results that are worth nothing. It
    // outlives the backend's use.
    virtual void stop_when(const std::atomic<bool>* cancelled) { (void)cancelled; }

    // -- memory --
    // Whether memory is better kept from one picture to the next than given back in between: on
    // devices that have their own.
    virtual bool keeps_memory() const { return false; }
    virtual Status allocate(size_t bytes, std::unique_ptr<Buffer>* out) = 0;
    // Makes a weight of the mapped model file usable by ops, which take it as `*out`, for as long
    // as `*owner` lives. On the CPU that is the mapping itself and `*owner` stays empty; devices
    // with their own memory upload it, now or at its first use.
    virtual Status load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) = 0;
    // The weight will not be used for a while: its memory may go until the next use, now or when
    // there is need of it.
    virtual void evict_weight(const Tensor& weight) { (void)weight; }
    // The same, but it goes now: what was computed with it is kept.
    virtual void drop_weight(const Tensor& weight) { evict_weight(weight); }
    // From contiguous host rows of to.cols elements, which the caller may change once this returns.
    virtual Status write(const Tensor& to, const void* host) = 0;
    virtual Status read(const Tensor& from, void* host) = 0; // waits for the queue first
    // Reads what had been computed when the queue was last waited for; what is queued since may run
    // meanwhile.
    virtual Status read_beside(const Tensor& from, void* host) { return read(from, host); }
    // [P, 3] of [-1, 1], contiguous, as bytes (core/pixels.h), after the queue; *finite is false if
    // one is no number.
    virtual Status read_pixels(const Tensor& from, uint8_t* rgb, bool* finite);
    virtual Status copy(const Tensor& from,
                        const Tensor& to) = 0; // f32 of one shape, queued like an op

    // -- working memory beside the caller's --
    // Bytes that an op takes while it runs; memory plans count the largest of a stage. They may be
    // kept for the ops behind it until release_scratch says that a stage has ended.
    virtual uint64_t scratch_bytes(const LinearArgs&) const { return 0; }
    virtual uint64_t scratch_bytes(const AttentionArgs&) const { return 0; }
    virtual uint64_t scratch_bytes(const Conv2dArgs&) const { return 0; }
    virtual void release_scratch() {}

    // -- queue --
    virtual Status synchronize() = 0;
    // Whole-step capture: ops between begin and end are recorded as well as run; replay runs them
    // again on the same addresses. Backends that gain nothing from it answer kUnsupported to
    // begin_capture and callers then queue ops each time.
    virtual Status begin_capture();
    virtual Status end_capture(std::unique_ptr<Capture>* out);
    virtual Status replay(const Capture& capture);

    // Pictures of one size that are drawn faster together than one by one, and are the same.
    virtual int64_t batch() const { return 1; }
    // Which types of activations save time here; others than F32 only where the precision allows.
    virtual ActivationTypes activations() const { return {}; }

    // -- ops --
    Status linear(const LinearArgs& args) { return checked(args, &Backend::do_linear); }
    // Two that do not need each other's results: devices may run them together.
    Status linear_pair(const LinearArgs& a, const LinearArgs& b) {
        BONSAI_TRY(check(a, activations()));
        BONSAI_TRY(check(b, activations()));
        return do_linear_pair(a, b);
    }
    Status rms_norm(const RmsNormArgs& args) { return checked(args, &Backend::do_rms_norm); }
    Status layer_norm(const LayerNormArgs& args) { return checked(args, &Backend::do_layer_norm); }
    Status head_norm_rope(const HeadNormRopeArgs& args) {
        return checked(args, &Backend::do_head_norm_rope);
    }
    Status attention(const AttentionArgs& args) { return checked(args, &Backend::do_attention); }
    Status swiglu(const SwigluArgs& args) { return checked(args, &Backend::do_swiglu); }
    Status silu(const SiluArgs& args) { return checked(args, &Backend::do_silu); }
    Status embed_rows(const EmbedRowsArgs& args) { return checked(args, &Backend::do_embed_rows); }
    Status group_norm(const GroupNormArgs& args) { return checked(args, &Backend::do_group_norm); }
    Status affine(const AffineArgs& args) { return checked(args, &Backend::do_affine); }
    Status conv2d(const Conv2dArgs& args) { return checked(args, &Backend::do_conv2d); }

  protected:
    // An op that a backend does not override answers kUnsupported, naming op and backend.
    virtual Status do_linear(const LinearArgs& args);
    virtual Status do_linear_pair(const LinearArgs& a, const LinearArgs& b) {
        BONSAI_TRY(do_linear(a));
        return do_linear(b);
    }
    virtual Status do_rms_norm(const RmsNormArgs& args);
    virtual Status do_layer_norm(const LayerNormArgs& args);
    virtual Status do_head_norm_rope(const HeadNormRopeArgs& args);
    virtual Status do_attention(const AttentionArgs& args);
    virtual Status do_swiglu(const SwigluArgs& args);
    virtual Status do_silu(const SiluArgs& args);
    virtual Status do_embed_rows(const EmbedRowsArgs& args);
    virtual Status do_group_norm(const GroupNormArgs& args);
    virtual Status do_affine(const AffineArgs& args);
    virtual Status do_conv2d(const Conv2dArgs& args);

  private:
    template <typename Args> Status checked(const Args& args, Status (Backend::*run)(const Args&)) {
        BONSAI_TRY(check(args, activations()));
        return (this->*run)(args);
    }
    Status unsupported(const char* op);
};

// All devices this build can use, the preferred one first. Never empty: the CPU is always there.
std::vector<DeviceInfo> list_devices();

// The kernel levels that this build holds for the processor, worst first, and which of them the
// processor can run.
struct CpuLevel {
    std::string name; // as in BONSAI_CPU
    bool available = false;
};
std::vector<CpuLevel> list_cpu_levels();

// device: "auto" or an id from list_devices().
Status create_backend(const std::string& device, const BackendOptions& options,
                      std::unique_ptr<Backend>* out);

} // namespace bonsai
