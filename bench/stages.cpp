// SPDX-License-Identifier: Apache-2.0
#include "stages.h"

#include <algorithm>
#include <functional>

#include "ceilings.h"
#include "model/pipeline.h"
#include "profile_backend.h"

namespace bonsai::bench {

namespace {

constexpr const char* kPrompt = "a red apple on a blue background";
constexpr const char* kStages[] = {"text encoder", "step", "vae decode"};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
}

// All samples of one row.
struct Samples {
    std::vector<double> wall, cpu;
    double giga_ops = 0; // of one sample
    bool bytes = false;
    uint64_t peak = 0;

    void add(double wall_seconds, double cpu_seconds) {
        wall.push_back(wall_seconds);
        cpu.push_back(cpu_seconds);
    }
};

// Rows in the order in which they first appeared.
struct Table {
    std::vector<std::pair<std::string, Samples>> rows;
    Samples& operator[](const std::string& name) {
        for (auto& [key, samples] : rows)
            if (key == name) return samples;
        rows.emplace_back(name, Samples());
        return rows.back().second;
    }
};

// Cuts the run of a picture into stages and steps, as its progress tells.
class Watch {
  public:
    Watch(std::string* stage, Table* table) : stage_(*stage), table_(*table) {}

    bool operator()(const bonsai_progress& progress) {
        if (!begun_ || progress.stage != last_.stage || progress.step != last_.step) {
            finish();
            stage_ = kStages[progress.stage];
            begun_ = true;
        }
        last_ = progress;
        return true;
    }
    void finish() {
        const Clock now = Clock::now();
        // A stage's last tick may come with a new step number but no work behind it.
        if (begun_ && !(last_.stage == BONSAI_STAGE_DENOISE && last_.step == last_.steps))
            table_[stage_].add(now.wall - start_.wall, now.cpu - start_.cpu);
        start_ = now;
    }

  private:
    std::string& stage_;
    Table& table_;
    bool begun_ = false;
    bonsai_progress last_{};
    Clock start_;
};

void add_ops(const std::string& stage, const ProfileBackend::Totals& ops, double parts,
             Table* table) {
    using Line = std::pair<std::string, OpTotal>;
    std::vector<Line> lines(ops.begin(), ops.end());
    std::sort(lines.begin(), lines.end(),
              [](const Line& a, const Line& b) { return a.second.cpu > b.second.cpu; });
    for (const auto& [name, total] : lines) {
        Samples& row = (*table)[stage + ": " + name];
        row.add(total.wall / parts, total.cpu / parts);
        row.giga_ops = total.giga_ops / parts;
        row.bytes = total.bytes;
    }
}

void add_stages(const std::map<std::string, ProfileBackend::Totals>& totals, int64_t steps,
                bool each_op, Table* table) {
    for (const char* stage : kStages) {
        const auto found = totals.find(stage);
        if (found == totals.end()) continue;
        const double parts = stage == kStages[1] ? static_cast<double>(steps) : 1;
        for (const auto& [name, total] : found->second)
            (*table)[stage].giga_ops += total.giga_ops / parts;
        if (each_op) add_ops(stage, found->second, parts, table);
    }
}

Status draw(const Case& what, Table* table, Record* common) {
    std::string stage = kStages[0];
    std::map<std::string, ProfileBackend::Totals> totals;
    PipelineOptions options;
    options.device = what.device;
    options.backend.threads = what.threads;
    options.backend.precision = what.exact ? Precision::kExact : Precision::kFast;
    options.max_memory = what.max_memory;
    const Clock start = Clock::now();
    std::unique_ptr<GgufFile> file;
    std::unique_ptr<Backend> device;
    std::unique_ptr<Pipeline> pipeline;
    BONSAI_TRY(GgufFile::open(what.model, &file));
    BONSAI_TRY(create_backend(options.device, options.backend, &device));
    auto profiled = std::make_unique<ProfileBackend>(std::move(device), options.backend.precision,
                                                     stage, &totals);
    BONSAI_TRY(Pipeline::open(std::move(file), std::move(profiled), options, &pipeline));
    const Clock opened = Clock::now();
    (*table)["open"].add(opened.wall - start.wall, opened.cpu - start.cpu);

    Watch watch(&stage, table);
    Request request;
    request.prompt = kPrompt;
    request.seed = 42;
    request.width = what.width;
    request.height = what.height;
    request.steps = what.steps;
    request.on_progress = std::ref(watch);
    std::vector<Picture> pictures;
    BONSAI_TRY(pipeline->generate(request, &pictures));
    watch.finish();
    const Clock end = Clock::now();
    Samples& image = (*table)["image, cold"];
    image.add(end.wall - start.wall, end.cpu - start.cpu);

    const bonsai_stats& stats = pictures[0].stats;
    const uint64_t peaks[] = {stats.text_encoder_peak, stats.denoise_peak, stats.vae_peak};
    for (int i = 0; i < 3; ++i) {
        Samples& row = (*table)[kStages[i]];
        row.peak = std::max(row.peak, peaks[i]);
        image.peak = std::max(image.peak, peaks[i]);
    }
    for (const char* stage : kStages)
        (*table)[stage].giga_ops = 0; // counted anew by each run
    const int64_t steps = what.steps > 0 ? what.steps : pipeline->config().default_steps;
    add_stages(totals, steps, what.ops, table);
    common->size = std::to_string(pictures[0].width) + "x" + std::to_string(pictures[0].height);
    common->level = pipeline->device().features;
    common->threads = pipeline->device().threads;
    common->model = format("%s, %.3f GB", pipeline->config().variant.c_str(),
                           static_cast<double>(pipeline->file().file().size()) * 1e-9);
    return Status();
}

} // namespace

Status measure(const Case& what, std::vector<Record>* out) {
    Table table;
    Record common;
    std::vector<double> bytes, floats;
    for (int i = 0; i < what.repeats; ++i) {
        BONSAI_TRY(draw(what, &table, &common));
        bytes.push_back(ceiling(Ceiling::kBytes));
        floats.push_back(ceiling(Ceiling::kFloats));
    }
    common.precision = what.exact ? "exact" : "fast";
    for (const auto& [name, samples] : table.rows) {
        Record record = common;
        record.what = name;
        record.repeats = static_cast<int>(samples.wall.size());
        record.seconds = median(samples.wall);
        record.cpu_seconds = median(samples.cpu);
        record.giga_ops = samples.giga_ops;
        record.peak_megabytes = static_cast<double>(samples.peak) * 1e-6;
        const auto [fastest, slowest] =
            std::minmax_element(samples.wall.begin(), samples.wall.end());
        record.spread = record.seconds > 0 ? (*slowest - *fastest) / record.seconds : 0;
        // In processor time on both sides, which other programs disturb little.
        const double top = median(samples.bytes ? bytes : floats) * record.cpu_seconds;
        // A stage mixes both kinds of work: its share of one ceiling would mean nothing.
        const bool op = name.find(": ") != std::string::npos;
        record.share = op && top > 0 ? record.giga_ops / top : 0;
        out->push_back(record);
    }
    return Status();
}

} // namespace bonsai::bench
