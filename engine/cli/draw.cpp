// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>

#include "commands.h"
#include "context.h"
#include "failure.h"
#include "metadata.h"
#include "output.h"
#include "signals.h"
#include "text.h"

namespace bonsai::cli {
namespace {

// A picture that frees itself.
struct Image {
    bonsai_image value{};
    Image() = default;
    ~Image() { bonsai_image_free(&value); }
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;
};

// All of standard input without the line end that editors and echo leave.
std::string read_prompt() {
    const IdleSection waiting;
    std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r'))
        text.pop_back();
    if (text.find('\0') != std::string::npos)
        throw Failure(kExitUsage, "--prompt -: standard input holds a zero byte, expected text");
    return text;
}

// 32 bits, as that is what counts of a seed: no two names for the same picture.
uint64_t random_seed() {
    return std::random_device()();
}

// Says the seed when the drawing has begun, that is when no argument can be wrong any more.
struct Listener {
    Console& console;
    std::string seed_line;
    bool seed_is_news; // drawn at random: printed even with -q
    int32_t image;     // of images: the pictures are drawn and saved one by one
    int32_t images;
    bool begun = false;

    void progress(const bonsai_progress& progress) {
        if (!begun && seed_is_news)
            console.always(seed_line);
        else if (!begun)
            console.note(seed_line);
        begun = true;
        bonsai_progress of_all = progress;
        of_all.image = image;
        of_all.images = images;
        console.progress(of_all);
    }
};

int32_t on_progress(const bonsai_progress* progress, void* user) {
    static_cast<Listener*>(user)->progress(*progress);
    return received_signal() != 0;
}

bonsai_generate_params make_params(const Options& o, Listener& listener) {
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.prompt = o.prompt->c_str();
    params.seed = *o.seed;
    params.width = o.width.value_or(params.width);
    params.height = o.height.value_or(params.height);
    params.steps = o.steps.value_or(params.steps);
    params.guidance = o.guidance.value_or(params.guidance);
    params.shift = o.shift.value_or(params.shift);
    params.noise_dtype = o.noise_dtype.value_or(params.noise_dtype);
    params.timestep_dtype = o.timestep_dtype.value_or(params.timestep_dtype);
    params.on_progress = on_progress;
    params.user = &listener;
    return params;
}

// One line; seconds and bytes.
std::string json_line(const bonsai_image& image, const std::string& path, const Options& options,
                      const bonsai_model_info& model) {
    const bonsai_stats& s = image.stats;
    char numbers[768];
    std::snprintf(
        numbers, sizeof(numbers),
        "\"seed\": %llu, \"width\": %d, \"height\": %d, "
        "\"seconds\": {\"text_encoder\": %.4f, \"denoise\": %.4f, \"vae\": %.4f, \"total\": %.4f}, "
        "\"peak_bytes\": {\"text_encoder\": %llu, \"denoise\": %llu, \"vae\": %llu}, "
        "\"arena_bytes\": %llu, \"prompt_tokens\": %d, \"prompt_truncated\": %s, "
        "\"vae_tiled\": %s",
        static_cast<unsigned long long>(image.seed), image.width, image.height,
        s.text_encoder_seconds, s.denoise_seconds, s.vae_seconds, s.total_seconds,
        static_cast<unsigned long long>(s.text_encoder_peak),
        static_cast<unsigned long long>(s.denoise_peak),
        static_cast<unsigned long long>(s.vae_peak), static_cast<unsigned long long>(s.arena_bytes),
        s.prompt_tokens, s.prompt_truncated != 0 ? "true" : "false",
        s.vae_tiled != 0 ? "true" : "false");
    std::string settings;
    for (const auto& [key, value] : parse_metadata(image.metadata != nullptr ? image.metadata : ""))
        settings += (settings.empty() ? "" : ", ") + json_string(key) + ": " + json_string(value);
    return "{\"path\": " + json_string(path) + ", " + numbers +
           ", \"prompt\": " + json_string(*options.prompt) +
           ", \"device\": " + json_string(model.device) +
           ", \"model_hash\": " + json_string(model.hash) +
           ", \"engine\": " + json_string(std::string("bonsai ") + bonsai_version()) +
           ", \"metadata\": {" + settings + "}}";
}

std::string summary(const bonsai_image& image) {
    const bonsai_stats& s = image.stats;
    const uint64_t peak = std::max({s.text_encoder_peak, s.denoise_peak, s.vae_peak});
    return std::to_string(image.width) + "x" + std::to_string(image.height) + ", seed " +
           std::to_string(image.seed) + ": text encoder " + format_seconds(s.text_encoder_seconds) +
           ", denoise " + format_seconds(s.denoise_seconds) + ", vae " +
           format_seconds(s.vae_seconds) + ", total " + format_seconds(s.total_seconds) +
           (peak > 0 ? ", peak memory " + format_bytes(peak) : "");
}

void print_line(const std::string& line) {
    if (std::fprintf(stdout, "%s\n", line.c_str()) < 0 || std::fflush(stdout) != 0)
        throw Failure(kExitFailure, "cannot write to standard output");
}

// Before anything is drawn, so that a file that cannot be read or written is known at once.
void exchange_embeds(bonsai_context* ctx, Options& options, Console& console) {
    if (options.load_embeds) {
        char* prompt = nullptr;
        check(bonsai_embeds_load(ctx, options.load_embeds->c_str(), &prompt));
        const std::unique_ptr<char, void (*)(void*)> owner(prompt, bonsai_free);
        options.prompt = prompt;
    }
    if (!options.save_embeds) return;
    console.note("encoding the prompt for " + *options.save_embeds);
    check(bonsai_embeds_save(ctx, options.prompt->c_str(), options.save_embeds->c_str()),
          kExitFailure);
}

void generate(bonsai_context* context, const bonsai_generate_params& params, const Options& options,
              Console& console, bonsai_image* image) {
    try {
        check(bonsai_generate(context, &params, image));
    } catch (const Failure& failure) {
        console.clear();
        if (failure.exit_code() == kExitMemory) note_plan(context, options, console);
        throw;
    }
}

} // namespace

void run_draw(Options options, Console& console) {
    if (options.prompt == "-") options.prompt = read_prompt();
    std::map<std::string, std::string> origin; // whose prompt may be "-", and is not to be read
    if (options.from) origin = apply_metadata(options);
    const bool drawn_seed = !options.seed;
    options.seed = options.seed.value_or(random_seed());
    const int32_t count = options.images.value_or(1);
    const Output output(options.output, count, options.json);

    const Context context(options, console);
    const bonsai_model_info model = context.info();
    const auto hash = origin.find("model_hash");
    if (hash != origin.end() && hash->second != model.hash)
        console.warning(*options.from + " was drawn with another model (hash " + hash->second +
                        "), the picture will differ");
    stop_if_signalled();
    exchange_embeds(context.get(), options, console);

    Listener listener{console, "seed " + std::to_string(*options.seed), drawn_seed, 0, count};
    bonsai_generate_params params = make_params(options, listener);
    for (; listener.image < count; ++listener.image, ++params.seed) {
        Image image;
        generate(context.get(), params, options, console, &image.value);
        console.clear();
        const std::string path = output.save(image.value, *options.prompt);
        console.note(summary(image.value));
        if (path != "-")
            print_line(options.json ? json_line(image.value, path, options, model) : path);
    }
    stop_if_signalled();
}

} // namespace bonsai::cli
