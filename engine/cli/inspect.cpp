// SPDX-License-Identifier: Apache-2.0
// The commands that look and do not draw.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "context.h"
#include "failure.h"
#include "metadata.h"
#include "model_path.h"
#include "signals.h"
#include "text.h"

namespace bonsai::cli {
namespace {

std::string number(uint64_t value) {
    return std::to_string(value);
}

// Columns padded to their longest cell, two spaces apart.
std::vector<std::string> table(const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::string> lines;
    std::vector<size_t> widths;
    for (const auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], row[i].size());
    }
    for (const auto& row : rows) {
        std::string line;
        for (size_t i = 0; i < row.size(); ++i) {
            line += row[i];
            if (i + 1 < row.size()) line.append(widths[i] + 2 - row[i].size(), ' ');
        }
        lines.push_back(line);
    }
    return lines;
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
    for (const std::string& line : table(rows))
        std::printf("%s\n", line.c_str());
}

struct StagePlan {
    const char* name;
    uint64_t weights, activations;
};

std::vector<StagePlan> stages_of(const bonsai_memory_plan& plan) {
    return {
        {"text encoder", plan.text_encoder_weights, plan.text_encoder_activations},
        {"denoise", plan.transformer_weights, plan.transformer_activations},
        {"vae", plan.vae_weights, plan.vae_activations},
    };
}

bonsai_status plan_memory(bonsai_context* context, const Options& options,
                          bonsai_memory_plan* plan) {
    *plan = {};
    plan->struct_size = sizeof(*plan);
    bonsai_generate_params params;
    bonsai_generate_params_init(&params);
    params.width = options.width.value_or(params.width);
    params.height = options.height.value_or(params.height);
    params.steps = options.steps.value_or(params.steps);
    params.guidance = options.guidance.value_or(params.guidance);
    return bonsai_plan_request(context, &params, plan);
}

std::string verdict(const bonsai_memory_plan& plan) {
    return format_bytes(plan.peak) + " of " + format_bytes(plan.limit);
}

std::vector<std::string> plan_lines(const bonsai_memory_plan& plan) {
    std::vector<std::vector<std::string>> rows = {
        {"stage", "weights", "activations", "resident", "afterwards"}};
    for (const StagePlan& s : stages_of(plan))
        rows.push_back({s.name, format_bytes(s.weights), format_bytes(s.activations),
                        format_bytes(s.weights + s.activations), "weights evicted"});
    std::vector<std::string> lines = table(rows);
    lines.push_back("peak " + verdict(plan) + ": " +
                    (plan.fits == 0        ? "does not fit"
                     : plan.vae_tiled != 0 ? "fits, the vae works in strips"
                                           : "fits"));
    return lines;
}

std::string plan_json(const bonsai_memory_plan& plan) {
    std::string out = "{\"stages\": [";
    for (const StagePlan& s : stages_of(plan))
        out += std::string(out.back() == '[' ? "" : ", ") + "{\"stage\": " + json_string(s.name) +
               ", \"weights\": " + number(s.weights) +
               ", \"activations\": " + number(s.activations) + "}";
    return out + "], \"peak\": " + number(plan.peak) + ", \"limit\": " + number(plan.limit) +
           ", \"vae_tiled\": " + (plan.vae_tiled != 0 ? "true" : "false") +
           ", \"fits\": " + (plan.fits != 0 ? "true" : "false") + "}";
}

int32_t on_verify(double fraction, const char*, void* user) {
    static_cast<Console*>(user)->progress("verify", fraction);
    return received_signal() != 0;
}

} // namespace

void run_info(const Options& options) {
    char* raw = nullptr;
    const std::string path = find_model(options.model).path;
    const IdleSection interruptible;
    check(bonsai_file_describe(path.c_str(), options.json, &raw));
    const std::unique_ptr<char, void (*)(void*)> text(raw, bonsai_free);
    const std::string out = text.get();
    std::printf("%s%s", out.c_str(), out.empty() || out.back() != '\n' ? "\n" : "");
}

void run_verify(const Options& options, Console& console) {
    const std::string path = find_model(options.model).path;
    check(bonsai_file_verify(path.c_str(), on_verify, &console));
    console.clear();
    if (options.json)
        std::printf("{\"path\": %s, \"ok\": true}\n", json_string(path).c_str());
    else
        std::printf("%s: all tensors match their hashes\n", path.c_str());
}

void run_devices(const Options& options) {
    const IdleSection interruptible;
    std::vector<std::vector<std::string>> rows = {
        {"device", "threads", "memory free", "of", "features", "name"}};
    for (int32_t i = 0; i < bonsai_device_count(); ++i) {
        bonsai_device_info d = {};
        d.struct_size = sizeof(d);
        check(bonsai_device_get_info(i, &d));
        if (options.json)
            std::printf("{\"id\": %s, \"name\": %s, \"features\": %s, \"threads\": %d, "
                        "\"memory_total\": %llu, \"memory_free\": %llu}\n",
                        json_string(d.id).c_str(), json_string(d.name).c_str(),
                        json_string(d.features).c_str(), d.threads,
                        static_cast<unsigned long long>(d.memory_total),
                        static_cast<unsigned long long>(d.memory_free));
        rows.push_back({d.id, d.threads > 0 ? std::to_string(d.threads) : "-",
                        format_bytes(d.memory_free), format_bytes(d.memory_total), d.features,
                        d.name});
    }
    if (!options.json) print_table(rows);
}

void run_doctor(const Options& options) {
    const IdleSection interruptible;
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = options.threads.value_or(params.threads);
    if (options.device) params.device = options.device->c_str();
    char* raw = nullptr;
    int32_t failures = 0;
    check(bonsai_self_test(&params, options.json, &raw, &failures));
    const std::unique_ptr<char, void (*)(void*)> report(raw, bonsai_free);
    if (options.verbosity > 0 || options.json || failures > 0)
        std::printf("%s%s", report.get(), options.json ? "\n" : "");
    if (failures > 0)
        throw Failure(kExitFailure,
                      std::to_string(failures) +
                          " checks failed: pictures of this device cannot be trusted; try another "
                          "--device or BONSAI_CPU=generic, and report this with the list above");
}

void note_plan(bonsai_context* context, const Options& options, Console& console) {
    bonsai_memory_plan plan;
    if (plan_memory(context, options, &plan) != BONSAI_OK) return;
    for (const std::string& line : plan_lines(plan))
        console.note(line);
}

void run_dry_run(Options options, Console& console) {
    if (options.from) apply_metadata(options);
    const Context context(options, console);
    const IdleSection interruptible;
    stop_if_signalled();
    bonsai_memory_plan plan;
    check(plan_memory(context.get(), options, &plan));
    if (options.json)
        std::printf("%s\n", plan_json(plan).c_str());
    else
        for (const std::string& line : plan_lines(plan))
            std::printf("%s\n", line.c_str());
    if (plan.fits == 0)
        throw Failure(kExitMemory, "not enough memory: " + verdict(plan) +
                                       "; draw a smaller picture or raise --max-memory");
}

} // namespace bonsai::cli
