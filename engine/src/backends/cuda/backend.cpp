// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/backend.h"

#include <cstring>

#include "backends/cuda/devices.h"
#include "backends/cuda/linear.h"

namespace bonsai::cuda {

namespace {

// All tokens of a picture of two megapixels: pieces would leave processors idle at their ends.
constexpr int64_t kMlpRows = 8704;

class DeviceBuffer final : public Buffer {
  public:
    DeviceBuffer(std::shared_ptr<Memory> memory, void* data, size_t bytes)
        : memory_(std::move(memory)) {
        data_ = data;
        size_ = bytes;
    }
    ~DeviceBuffer() override { memory_->release(data_, size_); }

  private:
    std::shared_ptr<Memory> memory_;
};

// A weight stays known for as long as this lives. Its address is that in the file.
class KnownWeight final : public Buffer {
  public:
    KnownWeight(std::shared_ptr<Weights> weights, const Tensor& host)
        : weights_(std::move(weights)) {
        data_ = host.data;
        size_ = static_cast<size_t>(host.rows) * row_bytes(host.dtype, host.cols);
        weights_->add(host);
    }
    ~KnownWeight() override { weights_->remove(data_); }

  private:
    std::shared_ptr<Weights> weights_;
};

// A graph, and what its addresses depend on.
class Graph final : public Capture {
  public:
    explicit Graph(int device) : device_(device) {}
    ~Graph() override {
        const DeviceScope scope(device_);
        if (executable) cudaGraphExecDestroy(executable);
    }
    cudaGraphExec_t executable = nullptr;
    uint64_t scratch = 0, weights = 0;

  private:
    int device_;
};

} // namespace

Status CudaBackend::create(const BackendOptions& options, int device,
                           std::unique_ptr<Backend>* out) {
    std::unique_ptr<CudaBackend> backend(new CudaBackend);
    BONSAI_TRY(describe(device, &backend->device_, &backend->context_));
    const DeviceScope scope(device);
    BONSAI_TRY(Memory::create(device, options.max_memory, &backend->memory_));
    BONSAI_TRY(Staging::create(options.threads, &backend->staging_));
    backend->weights_ = std::make_shared<Weights>(*backend->memory_, *backend->staging_);
    backend->scratch_ = std::make_unique<Scratch>(*backend->memory_);
    backend->context_.precision = options.precision;
    backend->context_.stream = backend->memory_->stream();
    backend->context_.scratch = backend->scratch_.get();
    Weights* weights = backend->weights_.get();
    backend->memory_->set_reclaimer([weights](uint64_t bytes) { return weights->drop(bytes); });
    *out = std::move(backend);
    return Status();
}

CudaBackend::~CudaBackend() {
    if (!memory_) return;
    const DeviceScope scope(memory_->device());
    cudaStreamSynchronize(memory_->stream());
    memory_->set_reclaimer(nullptr);
    scratch_.reset();
    weights_.reset();
    staging_.reset();
}

uint64_t CudaBackend::memory_free() const {
    return memory_->available();
}

uint64_t CudaBackend::memory_used() const {
    return memory_->used();
}

Status CudaBackend::allocate(size_t bytes, std::unique_ptr<Buffer>* out) {
    const DeviceScope scope(memory_->device());
    void* data = nullptr;
    BONSAI_TRY(memory_->allocate(bytes, "activations", &data));
    *out = std::make_unique<DeviceBuffer>(memory_, data, bytes);
    return Status();
}

Status CudaBackend::load_weight(const Tensor& host, std::unique_ptr<Buffer>* owner, Tensor* out) {
    if (!host.contiguous())
        return fail(ErrorCode::kArgument, "a weight is a slice of columns; load the whole");
    *owner = std::make_unique<KnownWeight>(weights_, host);
    *out = host;
    return Status();
}

void CudaBackend::evict_weight(const Tensor& weight) {
    weights_->mark_idle(weight.data);
}

void CudaBackend::drop_weight(const Tensor& weight) {
    weights_->drop_now(weight.data);
}

// Scratch memory stays: the next picture wants it again.
void CudaBackend::release_scratch() {
    weights_->next_stage();
}

Status CudaBackend::write(const Tensor& to, const void* host) {
    const DeviceScope scope(memory_->device());
    return staging_->upload(to.data, row_bytes(to.dtype, to.stride), host,
                            row_bytes(to.dtype, to.cols), static_cast<size_t>(to.rows),
                            memory_->stream());
}

Status CudaBackend::read(const Tensor& from, void* host) {
    const size_t row = row_bytes(from.dtype, from.cols);
    if (weights_->known(from.data)) {
        for (int64_t r = 0; r < from.rows; ++r)
            std::memcpy(static_cast<uint8_t*>(host) + static_cast<size_t>(r) * row,
                        from.packed_row(r), row);
        return Status();
    }
    const DeviceScope scope(memory_->device());
    return staging_->download(host, row, static_cast<size_t>(from.rows), from.data,
                              row_bytes(from.dtype, from.stride), memory_->stream());
}

Status CudaBackend::read_beside(const Tensor& from, void* host) {
    const DeviceScope scope(memory_->device());
    return staging_->download(host, row_bytes(from.dtype, from.cols),
                              static_cast<size_t>(from.rows), from.data,
                              row_bytes(from.dtype, from.stride), memory_->transfers());
}

Status CudaBackend::read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) {
    const DeviceScope scope(memory_->device());
    scratch_->reset();
    const auto count = static_cast<size_t>(from.rows * from.cols);
    uint32_t* bytes = nullptr;
    BONSAI_TRY(scratch_->get(pixel_words(count), &bytes));
    BONSAI_TRY(pixels(context_, from, bytes));
    uint32_t bad = 0;
    BONSAI_TRY(staging_->download(&bad, sizeof bad, 1, bytes, sizeof bad, memory_->stream()));
    *finite = bad == 0;
    return staging_->download(rgb, count, 1, bytes + 1, count, memory_->stream());
}

Status CudaBackend::copy(const Tensor& from, const Tensor& to) {
    const DeviceScope scope(memory_->device());
    return check(cudaMemcpy2DAsync(to.data, row_bytes(to.dtype, to.stride), from.data,
                                   row_bytes(from.dtype, from.stride),
                                   row_bytes(from.dtype, from.cols), static_cast<size_t>(from.rows),
                                   cudaMemcpyDeviceToDevice, memory_->stream()),
                 "copy");
}

Status CudaBackend::synchronize() {
    const DeviceScope scope(memory_->device());
    return check(cudaStreamSynchronize(memory_->stream()), "synchronize");
}

void CudaBackend::freeze(bool frozen) {
    scratch_->freeze(frozen);
    weights_->freeze(frozen);
}

Status CudaBackend::begin_capture() {
    const DeviceScope scope(memory_->device());
    // If the op before has made scratch memory grow, its pieces become one before it may not.
    void* none = nullptr;
    scratch_->reset();
    BONSAI_TRY(scratch_->get(1, &none));
    // Relaxed: what callbacks of the caller do with CUDA meanwhile is not our concern.
    BONSAI_TRY(check(cudaStreamBeginCapture(memory_->stream(), cudaStreamCaptureModeRelaxed),
                     "cudaStreamBeginCapture"));
    freeze(true);
    return Status();
}

Status CudaBackend::end_capture(std::unique_ptr<Capture>* out) {
    const DeviceScope scope(memory_->device());
    freeze(false);
    cudaGraph_t graph = nullptr; // first, lest the stream goes on recording where memory is short
    BONSAI_TRY(check(cudaStreamEndCapture(memory_->stream(), &graph), "cudaStreamEndCapture"));
    const std::unique_ptr<CUgraph_st, cudaError_t (*)(cudaGraph_t)> owner(graph, cudaGraphDestroy);
    auto recorded = std::make_unique<Graph>(memory_->device());
    BONSAI_TRY(
        check(cudaGraphInstantiate(&recorded->executable, graph, 0), "cudaGraphInstantiate"));
    recorded->scratch = scratch_->generation();
    recorded->weights = weights_->generation();
    BONSAI_TRY(replay(*recorded));
    *out = std::move(recorded);
    return Status();
}

Status CudaBackend::replay(const Capture& capture) {
    const auto& graph = static_cast<const Graph&>(capture);
    if (graph.scratch != scratch_->generation() || graph.weights != weights_->generation())
        return fail(ErrorCode::kUnsupported, "memory has moved since the ops were recorded");
    const DeviceScope scope(memory_->device());
    return check(cudaGraphLaunch(graph.executable, memory_->stream()), "cudaGraphLaunch");
}

ActivationTypes CudaBackend::activations() const {
    ActivationTypes types;
    types.mlp_rows = kMlpRows;
    if (context_.precision == Precision::kFast) {
        types.product = DType::kI8;
        types.heads = types.hidden = DType::kF16;
        if (linear_hopper_serves(context_, DType::kPQ2_0)) types.low_bit_group = kWideGroup;
    }
    return types;
}

uint64_t CudaBackend::scratch_bytes(const LinearArgs& args) const {
    return linear_scratch(context_, args);
}
uint64_t CudaBackend::scratch_bytes(const AttentionArgs& args) const {
    return attention_scratch(context_, args);
}
uint64_t CudaBackend::scratch_bytes(const Conv2dArgs& args) const {
    return conv2d_scratch(context_, args);
}

template <typename Args>
Status CudaBackend::launch(Status (*launcher)(const Context&, const Args&), const Args& args) {
    const DeviceScope scope(memory_->device());
    scratch_->reset();
    return launcher(context_, args);
}

Status CudaBackend::locate_weights(LinearArgs* args) {
    const bool folded = linear_folds(context_, *args);
    for (int i = 0; i < args->count; ++i)
        BONSAI_TRY(weights_->locate(&args->projections[i].weight, folded));
    return Status();
}

Status CudaBackend::do_linear(const LinearArgs& args) {
    const DeviceScope scope(memory_->device());
    LinearArgs there = args;
    BONSAI_TRY(locate_weights(&there));
    return launch(cuda::linear, there);
}

Status CudaBackend::do_linear_pair(const LinearArgs& a, const LinearArgs& b) {
    const DeviceScope scope(memory_->device());
    LinearArgs there[2] = {a, b};
    for (LinearArgs& args : there)
        BONSAI_TRY(locate_weights(&args));
    scratch_->reset();
    return cuda::linear_pair(context_, there[0], there[1]);
}

Status CudaBackend::do_conv2d(const Conv2dArgs& args) {
    const DeviceScope scope(memory_->device());
    Conv2dArgs there = args;
    BONSAI_TRY(weights_->locate(&there.weight));
    return launch(cuda::conv2d, there);
}

// Of a table only the rows that are asked for are uploaded, then treated as weights are.
Status CudaBackend::gather_rows(const EmbedRowsArgs& args) {
    const size_t row = row_bytes(args.table.dtype, args.table.cols);
    const auto rows = static_cast<size_t>(args.out.rows);
    std::vector<uint8_t> gathered(rows * row);
    for (size_t i = 0; i < rows; ++i)
        std::memcpy(gathered.data() + i * row, args.table.packed_row(args.ids[i]), row);
    Tensor raw = args.table;
    raw.rows = args.out.rows;
    BONSAI_TRY(scratch_->get(gathered.size(), &raw.data));
    BONSAI_TRY(staging_->upload(raw.data, row, gathered.data(), row, rows, memory_->stream()));
    EmbedRowsArgs there = args;
    there.ids = nullptr;
    there.table = raw;
    const DeviceWeight packed = device_weight(raw);
    if (packed.repack) {
        there.table.dtype = packed.dtype;
        BONSAI_TRY(scratch_->get(packed.bytes, &there.table.data));
        BONSAI_TRY(repack_weight(memory_->stream(), raw, there.table.data));
    }
    return cuda::embed_rows(context_, there);
}

Status CudaBackend::do_embed_rows(const EmbedRowsArgs& args) {
    if (!weights_->known(args.table.data))
        return fail(ErrorCode::kUnsupported, "embed_rows: device %s takes tables of the model file",
                    device_.id.c_str());
    const DeviceScope scope(memory_->device());
    scratch_->reset();
    return gather_rows(args);
}

Status CudaBackend::do_rms_norm(const RmsNormArgs& args) {
    return launch(cuda::rms_norm, args);
}
Status CudaBackend::do_layer_norm(const LayerNormArgs& args) {
    return launch(cuda::layer_norm, args);
}
Status CudaBackend::do_head_norm_rope(const HeadNormRopeArgs& args) {
    return launch(cuda::head_norm_rope, args);
}
Status CudaBackend::do_attention(const AttentionArgs& args) {
    return launch(cuda::attention, args);
}
Status CudaBackend::do_swiglu(const SwigluArgs& args) {
    return launch(cuda::swiglu, args);
}
Status CudaBackend::do_silu(const SiluArgs& args) {
    return launch(cuda::silu, args);
}
Status CudaBackend::do_group_norm(const GroupNormArgs& args) {
    return launch(cuda::group_norm, args);
}
Status CudaBackend::do_affine(const AffineArgs& args) {
    return launch(cuda::affine, args);
}

} // namespace bonsai::cuda
