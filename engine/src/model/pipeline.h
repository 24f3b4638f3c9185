// SPDX-License-Identifier: Apache-2.0
// Pipeline: prompt in, picture out. The stages, in order: tokenizer -> text encoder -> transformer,
// once a step -> VAE decoder. Each stage has an arena of its own, sized before it starts, and gives
// its memory back when it ends; on a device that has memory for all, one buffer serves the arenas
// of all stages and pictures.
#pragma once

#include <atomic>
#include <future>
#include <memory>

#include "bonsai.h"
#include "model/config.h"
#include "model/embeds.h"
#include "model/sampler.h"
#include "model/text_encoder.h"
#include "model/tokenizer.h"
#include "model/transformer.h"
#include "model/vae.h"

namespace bonsai {

struct PipelineOptions {
    std::string device = "auto";
    BackendOptions backend;
    uint64_t max_memory = 0; // 0: what the device has free
    std::function<void(const std::string& line)> log;
};

// What to draw; zero and negative values mean the model's defaults, as in bonsai_generate_params.
struct Request {
    std::string prompt;
    int64_t width = 0, height = 0, steps = 0, images = 1;
    float guidance = -1, shift = 0;
    bonsai_dtype noise_dtype = BONSAI_DTYPE_F32, timestep_dtype = BONSAI_DTYPE_F32;
    int64_t preview_every = 0;
    uint64_t seed = 0;
    std::function<bool(const bonsai_progress&)> on_progress; // true: go on
    std::function<bool(const bonsai_step&)> on_step;
    std::function<Status(const std::string& name, const Tensor& value, Backend& backend)>
        probe; // for tests
};

struct Picture {
    int64_t width = 0, height = 0;
    std::vector<uint8_t> rgb; // [height, width, 3]
    uint64_t seed = 0;
    std::string metadata;
    bonsai_stats stats{};
};

static_assert(kSizeMultiple == 2 * VaeDecoder::kScale, "patches of 2 x 2 latents");

class Pipeline {
  public:
    static Status open(const std::string& path, const PipelineOptions& options,
                       std::unique_ptr<Pipeline>* out);
    // The same for a file and a device that are there already.
    static Status open(std::unique_ptr<GgufFile> file, std::unique_ptr<Backend> backend,
                       const PipelineOptions& options, std::unique_ptr<Pipeline>* out);

    ~Pipeline();

    Status generate(const Request& request, std::vector<Picture>* out);
    // Real token ids, template included.
    Status tokenize(const std::string& prompt, std::vector<int32_t>* ids) const;
    // [max_tokens, prompt_width]
    Status encode_prompt(const std::string& prompt, std::vector<float>* out);
    // An encoded prompt as a file; one that was loaded is not encoded again while it is among the
    // last used.
    Status save_embeds(const std::string& prompt, const std::string& path);
    Status load_embeds(const std::string& path, std::string* prompt);
    Status plan_memory(int64_t width, int64_t height, bonsai_memory_plan* plan) const;
    // Of one picture of the request.
    Status plan_memory(const Request& asked, bonsai_memory_plan* plan) const;

    void cancel() { cancelled_ = true; }
    // Before work starts: forgets an earlier cancel().
    void clear_cancel() { cancelled_ = false; }

    const Config& config() const { return config_; }
    const GgufFile& file() const { return *file_; }
    const std::string& hash() const { return hash_; }
    const DeviceInfo& device() const { return backend_->device(); }
    const TextEncoder& text_encoder() const { return text_encoder_; }
    const Transformer& transformer() const { return transformer_; }
    const VaeDecoder& vae() const { return vae_; }

  private:
    // Bytes that a stage takes beside its weights: activations, and what one op works with.
    struct StagePlan {
        size_t arena = 0;
        uint64_t scratch = 0;
        size_t kept = 0; // in an arena that outlives the stage
        uint64_t total() const { return arena + scratch + kept; }
    };
    // How a picture is decoded: arena bytes that the decoder should stay within, what it then
    // takes, and all bytes, pictures on the host included.
    struct PicturePlan {
        uint64_t budget = 0;
        StagePlan stage;
        uint64_t bytes = 0;
        bool tight = false; // the limit asks for a budget that costs time
    };
    // Where a stage stands, for progress and memory statistics.
    struct Monitor;
    // State between steps.
    struct Denoising;
    // Gives weights back to the system when a block ends, be it by an error or an exception.
    struct Eviction {
        const Pipeline& pipeline;
        std::vector<const WeightSet*> sets;
        ~Eviction() {
            for (const WeightSet* set : sets)
                pipeline.evict(*set);
        }
    };

    Status load(WeightLoader& loader);
    Status check_ops() const;
    Status templated(const std::string& prompt, std::string* text) const;
    Status resolve(Request* request) const;
    Status encode_all(const Request& request, Monitor& monitor);
    Status encode(const std::string& prompt, Monitor& monitor, double first, double share,
                  Prompt* out, Tensor* left = nullptr);
    Status encode_one(const std::string& prompt, Prompt* out);
    Status fetch_pending();
    std::shared_ptr<const Prompt> take_recent(const std::string& text);
    void remember(const std::shared_ptr<const Prompt>& prompt);
    EmbedsShape embeds_shape() const;
    Status draw_all(const Request& request, std::vector<Picture>* out);
    Status draw(const Request& request, std::vector<float> noise, Monitor& monitor,
                Picture* pictures, size_t count);
    std::vector<float> schedule(const Request& request) const;
    std::vector<float> timesteps(const Request& request) const;
    std::future<std::vector<float>> begin_noise(const Request& request, uint64_t seed) const;
    Status denoise(const Request& request, int64_t pictures, std::vector<float> noise,
                   Monitor& monitor, std::vector<float>* latents);
    Status open_denoising(const Run& run, const Request& request, int64_t pictures, size_t bytes,
                          std::unique_ptr<Denoising>* d) const;
    Status prepare_denoising(const Run& run, const Request& request, int64_t pictures,
                             size_t passes, Denoising* d) const;
    Status embed_prompts(const Run& run, const std::vector<std::shared_ptr<const Prompt>>& prompts,
                         Denoising* d) const;
    Status run_transformer(const Run& run, size_t context, bool first, Denoising* d) const;
    Status evaluate(const Run& run, const Request& request, int64_t step, Denoising* d) const;
    Status take_step(const Run& run, const Request& request, int64_t step, Monitor& monitor,
                     Denoising* d);
    Status report_step(const Request& request, int64_t step, const std::vector<float>& sigmas,
                       const Denoising& d, Monitor& monitor);
    Status decode(const std::vector<float>& latents, int64_t height, int64_t width,
                  Monitor& monitor, bool* in_strips, std::vector<uint8_t>* rgb);
    Status decode_latents(const std::vector<float>& tokens, int64_t height, int64_t width,
                          uint64_t budget, const Run& run, std::vector<uint8_t>* rgb,
                          std::vector<float>* pixels) const;
    Status check_numbers(const float* values, size_t count, bonsai_stage stage,
                         const std::string& when) const;
    Status not_a_number(bonsai_stage stage, const std::string& when) const;
    Status check_plain(const std::vector<float>& latents, const std::vector<float>& pixels,
                       const std::vector<uint8_t>& rgb) const;
    Status plan_text(StagePlan* plan) const;
    Status plan_denoise(const Request& request, int64_t pictures, StagePlan* plan) const;
    int64_t choose_batch(const Request& request) const;
    Status plan_decode(int64_t height, int64_t width, uint64_t budget, StagePlan* plan) const;
    Status plan_picture(int64_t height, int64_t width, uint64_t limit, PicturePlan* plan) const;
    Status plan_request(const Request& request, bonsai_memory_plan* plan) const;
    Status plan_workspace(const Request& request, size_t* bytes) const;
    Status reserve(const Request& request);
    size_t prompt_bytes() const;
    bool end_of_workspace(Tensor* prompt) const;
    Status borrow_arena(size_t bytes, std::unique_ptr<Arena>* out) const;
    Status check_memory(const Request& request) const;
    Status check_text_memory() const;
    Status check_limit(const std::string& what, const char* instead, uint64_t activations,
                       uint64_t with_weights, uint64_t limit) const;
    uint64_t memory_limit() const;
    uint64_t all_weights() const;
    bool streams(const WeightSet& weights, uint64_t activations) const;
    bool streams(const WeightSet& weights, uint64_t activations, uint64_t limit) const;
    void evict(const WeightSet& weights) const;
    std::string metadata(const Request& request, uint64_t seed,
                         const std::vector<float>& sigmas) const;

    PipelineOptions options_;
    std::unique_ptr<GgufFile> file_;
    Config config_;
    std::string hash_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::vector<std::shared_ptr<const Prompt>> encoded_; // of this picture
    std::vector<std::shared_ptr<const Prompt>> recent_;  // the last used first: prompts recur
    // An encoded prompt whose rows still lie at the end of workspace_: they are read while the
    // first step runs. Not among the recent ones before that.
    struct Pending {
        std::shared_ptr<Prompt> prompt;
        Tensor rows;
    };
    Pending pending_;
    TextEncoder text_encoder_;
    Transformer transformer_;
    VaeDecoder vae_;
    std::shared_ptr<Buffer> workspace_; // of the arenas, where it is kept
    std::unique_ptr<Denoising> kept_;   // of the last picture, likewise
    std::atomic<bool> cancelled_{false};
};

} // namespace bonsai
