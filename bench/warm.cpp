// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-warm: what a picture takes once everything is in place: one process draws pictures
// for each line of a file and prints the medians of all but the first, which brings the weights.
//
//   bonsai-bench-warm MODEL DEVICE fast|exact WIDTHxHEIGHT[,...] STEPS PROMPTS.txt [FOLDER]
//                     [--batch N] [--split] [--max-memory BYTES] [--threads N]
//
// Of several sizes all lines are drawn in the first, then all in the next: "first" tells what the
// picture that is left out took, which in later sizes is what a new size costs.
// FOLDER takes the pictures. --batch draws N pictures a line, times are of one of them. "cpu" is
// what all threads of this process used, in seconds; --threads says how many the processor's
// backend has (default: one for each physical core). --split tells what the calling thread does in
// each stage: queueing ops, waiting for the device, copying; "host" is all that is no call to the
// device. --split costs a wait before each reading back.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "core/file_output.h"
#include "core/png.h"
#include "model/pipeline.h"
#include "stopwatch.h"

namespace {

using namespace bonsai;
using Seconds = std::chrono::duration<double>;

constexpr const char* kStages[] = {"text encoder", "denoise", "vae"};

struct Options {
    std::vector<const char*> places;                // of the command line, without options
    std::vector<std::pair<int64_t, int64_t>> sizes; // width, height
    int64_t steps = 0, batch = 1;
    uint64_t max_memory = 0;
    int threads = 0;
    Precision precision = Precision::kFast;
    bool split = false;
};

bool parse_sizes(const char* text, std::vector<std::pair<int64_t, int64_t>>* sizes) {
    for (int used = 0;; text += used + 1) {
        int64_t width = 0, height = 0;
        if (!bench::parse_size(text, &width, &height, &used)) return false;
        sizes->push_back({width, height});
        if (text[used] != ',') return text[used] == '\0';
    }
}

bool parse(int argc, char** argv, Options* o) {
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "--split")
            o->split = true;
        else if (word == "--batch" && i + 1 < argc)
            o->batch = std::atoll(argv[++i]);
        else if (word == "--max-memory" && i + 1 < argc)
            o->max_memory = std::strtoull(argv[++i], nullptr, 10);
        else if (word == "--threads" && i + 1 < argc)
            o->threads = std::atoi(argv[++i]);
        else
            o->places.push_back(argv[i]);
    }
    if (o->places.size() < 6 || !bench::parse_precision(o->places[2], &o->precision) ||
        !parse_sizes(o->places[3], &o->sizes))
        return false;
    if (o->places.size() > 6 && o->sizes.size() > 1) return false; // pictures are named by number
    o->steps = std::atoll(o->places[4]);
    return o->steps > 0 && o->batch > 0 && o->threads >= 0;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : 1e3 * values[values.size() / 2];
}

// Processor time of all threads of this process, in seconds.
double process_seconds() {
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

struct Measured {
    int64_t width = 0, height = 0;
    double first = 0;                                      // seconds by the clock, of one picture
    std::vector<double> text, step, vae, total, wall, cpu; // seconds, of one picture
    uint64_t peak[3] = {0, 0, 0}, arena = 0;
    int lines = 0, pictures = 0;
    std::string stage = "before and after";
    std::map<std::string, bench::Stopwatch::Totals> calls;
    std::map<std::string, double> stages; // seconds of all warm pictures
};

Status save(const Picture& picture, const std::string& path) {
    std::vector<uint8_t> png;
    BONSAI_TRY(encode_png(picture.rgb.data(), static_cast<int32_t>(picture.width),
                          static_cast<int32_t>(picture.height), picture.metadata, &png));
    return write_file(path, png.data(), png.size());
}

Status draw(const Options& o, const std::string& prompt, Pipeline* pipeline, Measured* m) {
    Request request;
    request.prompt = prompt;
    request.width = m->width, request.height = m->height, request.steps = o.steps;
    request.images = o.batch;
    request.seed = static_cast<uint64_t>(m->pictures);
    request.on_progress = [&](const bonsai_progress& progress) {
        m->stage = kStages[progress.stage];
        return true;
    };
    if (m->lines == 1) m->calls.clear(); // of the first, which is left out
    std::vector<Picture> pictures;
    const double cpu_start = process_seconds();
    const auto start = std::chrono::steady_clock::now();
    BONSAI_TRY(pipeline->generate(request, &pictures));
    const double wall = Seconds(std::chrono::steady_clock::now() - start).count();
    const double cpu = process_seconds() - cpu_start;
    m->stage = "before and after";
    double text = 0, denoise = 0, vae = 0;
    for (const Picture& picture : pictures) {
        const bonsai_stats& s = picture.stats;
        text += s.text_encoder_seconds, denoise += s.denoise_seconds, vae += s.vae_seconds;
        m->peak[0] = std::max(m->peak[0], s.text_encoder_peak);
        m->peak[1] = std::max(m->peak[1], s.denoise_peak);
        m->peak[2] = std::max(m->peak[2], s.vae_peak);
        m->arena = std::max(m->arena, s.arena_bytes);
        if (o.places.size() > 6)
            BONSAI_TRY(save(picture,
                            std::string(o.places[6]) + "/" + std::to_string(m->pictures) + ".png"));
        ++m->pictures;
    }
    const double share = 1.0 / static_cast<double>(o.batch);
    if (m->lines++ == 0) {
        m->first = wall * share;
        return Status();
    }
    m->text.push_back(text * share);
    m->step.push_back(denoise * share / static_cast<double>(o.steps));
    m->vae.push_back(vae * share);
    m->total.push_back((text + denoise + vae) * share);
    m->wall.push_back(wall * share);
    m->cpu.push_back(cpu * share);
    m->stages["text encoder"] += text;
    m->stages["denoise"] += denoise;
    m->stages["vae"] += vae;
    m->stages["before and after"] += wall - text - denoise - vae;
    return Status();
}

void print_split(const Options& o, const Measured& m) {
    const double pictures = static_cast<double>((m.lines - 1) * o.batch);
    for (const auto& [stage, seconds] : m.stages) {
        double host = seconds;
        std::printf("  %-16s %8.2f ms:", stage.c_str(), 1e3 * seconds / pictures);
        const auto calls = m.calls.find(stage);
        if (calls != m.calls.end()) {
            for (const auto& [kind, spent] : calls->second) {
                std::printf(" %s %.2f,", kind.c_str(), 1e3 * spent / pictures);
                host -= spent;
            }
        }
        std::printf(" host %.2f\n", 1e3 * host / pictures);
    }
}

void print(const Options& o, const Measured& m, const Backend& device) {
    const auto mb = [](uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; };
    std::printf("%s %s %lldx%lld, %lld steps, %d pictures: text encoder %.2f ms, step %.2f ms, "
                "vae %.2f ms, image %.2f ms, peak %.0f MB, wall %.2f ms, batch %lld, cpu %.2f s, "
                "threads %d, first %.2f ms\n",
                o.places[1], o.places[2], static_cast<long long>(m.width),
                static_cast<long long>(m.height), static_cast<long long>(o.steps), m.pictures,
                median(m.text), median(m.step), median(m.vae), median(m.total),
                mb(std::max({m.peak[0], m.peak[1], m.peak[2]})), median(m.wall),
                static_cast<long long>(o.batch), 1e-3 * median(m.cpu), device.device().threads,
                1e3 * m.first);
    if (!o.split) return;
    print_split(o, m);
    std::printf("  MB: peak of text encoder %.0f, denoise %.0f, vae %.0f; largest arena %.0f; "
                "left between pictures %.0f\n",
                mb(m.peak[0]), mb(m.peak[1]), mb(m.peak[2]), mb(m.arena), mb(device.memory_used()));
}

Status run(const Options& o) {
    PipelineOptions options;
    options.device = o.places[1];
    options.backend.precision = o.precision;
    options.max_memory = options.backend.max_memory = o.max_memory;
    options.backend.threads = o.threads;
    std::unique_ptr<GgufFile> file;
    std::unique_ptr<Backend> device;
    std::unique_ptr<Pipeline> pipeline;
    Measured m;
    BONSAI_TRY(GgufFile::open(o.places[0], &file));
    BONSAI_TRY(create_backend(options.device, options.backend, &device));
    const Backend* used = device.get();
    if (o.split) device = std::make_unique<bench::Stopwatch>(std::move(device), &m.stage, &m.calls);
    BONSAI_TRY(Pipeline::open(std::move(file), std::move(device), options, &pipeline));
    for (const auto& [width, height] : o.sizes) {
        m = Measured();
        m.width = width, m.height = height;
        std::ifstream prompts(o.places[5]);
        for (std::string prompt; std::getline(prompts, prompt);)
            BONSAI_TRY(draw(o, prompt, pipeline.get(), &m));
        if (m.lines < 2)
            return fail(ErrorCode::kArgument,
                        "%s: %d lines, expected 2 or more: the first is left "
                        "out",
                        o.places[5], m.lines);
        print(o, m, *used);
    }
    return Status();
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    if (!parse(argc, argv, &options)) {
        std::fprintf(stderr, "usage: bonsai-bench-warm MODEL DEVICE fast|exact "
                             "WIDTHxHEIGHT[,...] STEPS PROMPTS.txt [FOLDER] [--batch N] [--split] "
                             "[--max-memory BYTES] [--threads N]\n");
        return 2;
    }
    const Status status = run(options);
    if (status.ok()) return 0;
    std::fprintf(stderr, "bonsai-bench-warm: %s\n", status.message().c_str());
    return 1;
}
