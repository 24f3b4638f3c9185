// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-step: one evaluation of the transformer on random inputs, without text encoder and
// VAE: the step and each of its ops by wall clock and processor time, and how much faster than with
// the first number of threads, of the ideal.
//
//   bonsai-bench-step MODEL WIDTHxHEIGHT RUNS THREADS [THREADS...]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/rng.h"
#include "model/transformer.h"
#include "profile_backend.h"

using namespace bonsai;
using bench::Clock;
using bench::ProfileBackend;

namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

struct Row {
    std::vector<double> wall, cpu; // a run each
    double giga_ops = 0;
    int64_t calls = 0;
};
using Rows = std::map<std::string, Row>;

struct Step {
    const GgufFile& file;
    const Config& config;
    int64_t height, width; // tokens
    Transformer transformer = {};
    Tensor latents = {}, context = {}, velocity = {};
    TransformerTables tables = {};

    // Everything before the first op of the step; also run with a planning arena.
    Status prepare(const Run& run) {
        const TransformerConfig& c = config.transformer;
        BONSAI_TRY(run.arena.allocate(height * width, c.channels, &latents));
        BONSAI_TRY(run.arena.allocate(height * width, c.channels, &velocity));
        BONSAI_TRY(run.arena.allocate(config.text.max_tokens, c.width(), &context));
        BONSAI_TRY(transformer.prepare(run, {1000.0f}, context.rows, height, width, &tables));
        return transformer.begin_step(run, tables, 0);
    }
    Status fill(Backend& backend) const {
        for (const Tensor* t : {&latents, &context}) {
            std::vector<float> values(static_cast<size_t>(t->rows * t->cols));
            torch_cpu_randn(1, values.data(), values.size());
            BONSAI_TRY(backend.write(*t, values.data()));
        }
        return Status();
    }
    Status evaluate(const Run& run) const {
        return transformer.evaluate(run, tables, latents, context, velocity);
    }

    Status measure(int threads, int runs, Rows* rows, std::vector<std::string>* order) {
        transformer = Transformer();
        BackendOptions options;
        options.threads = threads;
        std::unique_ptr<Backend> device;
        BONSAI_TRY(create_backend("cpu", options, &device));
        std::map<std::string, ProfileBackend::Totals> totals;
        std::string stage = "before";
        ProfileBackend backend(std::move(device), options.precision, stage, &totals);
        WeightLoader loader(file, backend);
        BONSAI_TRY(transformer.load(config.transformer, loader));

        PlanBackend plan(backend);
        Arena planned;
        BONSAI_TRY(prepare(Run{plan, planned, nullptr, nullptr}));
        BONSAI_TRY(evaluate(Run{plan, planned, nullptr, nullptr}));
        std::unique_ptr<Arena> arena;
        BONSAI_TRY(Arena::create(backend, planned.peak(), &arena));
        const Run run{backend, *arena, nullptr, nullptr};
        BONSAI_TRY(prepare(run));
        BONSAI_TRY(fill(backend));
        for (int i = 0; i <= runs; ++i) {
            stage = i == 0 ? "first" : "step";
            totals[stage].clear();
            const Clock start = Clock::now();
            BONSAI_TRY(evaluate(run));
            const Clock end = Clock::now();
            note(i == 0 ? "first step" : "step", end.wall - start.wall, end.cpu - start.cpu, 0, 1,
                 rows, order);
            if (i == 0) continue;
            for (const auto& [name, op] : totals[stage])
                note(name, op.wall, op.cpu, op.giga_ops, op.calls, rows, order);
        }
        return Status();
    }
    static void note(const std::string& name, double wall, double cpu, double giga_ops,
                     int64_t calls, Rows* rows, std::vector<std::string>* order) {
        if (rows->find(name) == rows->end() &&
            std::find(order->begin(), order->end(), name) == order->end())
            order->push_back(name);
        Row& row = (*rows)[name];
        row.wall.push_back(wall);
        row.cpu.push_back(cpu);
        row.giga_ops = giga_ops;
        row.calls = calls;
    }
};

void print(const std::vector<std::string>& order, const Rows& rows, const Rows& base, int threads,
           int base_threads) {
    std::printf("\n| %d threads | calls | ms | CPU-ms | waiting | TOP/s | of %d |\n"
                "|---|---|---|---|---|---|---|\n",
                threads, base_threads);
    for (const std::string& name : order) {
        const auto found = rows.find(name);
        if (found == rows.end()) continue;
        const Row& row = found->second;
        const double wall = median(row.wall), cpu = median(row.cpu);
        std::printf("| %s | %lld | %.2f | %.1f | %.0f %% | %.2f | %.0f %% |\n", name.c_str(),
                    static_cast<long long>(row.calls), wall * 1e3, cpu * 1e3,
                    100 * std::max(0.0, 1 - cpu / wall / threads), row.giga_ops / wall * 1e-3,
                    100 * median(base.at(name).wall) * base_threads / wall / threads);
    }
    std::fflush(stdout);
}

Status run(int argc, char** argv) {
    int64_t width = 0, height = 0;
    int used = 0;
    if (!bench::parse_size(argv[2], &width, &height, &used) || argv[2][used] != 0)
        return fail(ErrorCode::kArgument, "%s: expected WIDTHxHEIGHT, multiples of 16", argv[2]);
    std::unique_ptr<GgufFile> file;
    Config config;
    BONSAI_TRY(GgufFile::open(argv[1], &file));
    BONSAI_TRY(read_config(*file, &config));
    Step step{*file, config, height / kSizeMultiple, width / kSizeMultiple};
    std::vector<std::string> order;
    Rows base;
    const int base_threads = std::max(1, std::atoi(argv[4]));
    for (int i = 4; i < argc; ++i) {
        Rows rows;
        const int threads = std::max(1, std::atoi(argv[i]));
        BONSAI_TRY(step.measure(threads, std::max(1, std::atoi(argv[3])), &rows, &order));
        if (i == 4) base = rows;
        print(order, rows, base, threads, base_threads);
    }
    return Status();
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 5) {
        std::fprintf(stderr,
                     "usage: bonsai-bench-step MODEL WIDTHxHEIGHT RUNS THREADS [THREADS...]\n");
        return 2;
    }
    const Status status = run(argc, argv);
    if (!status.ok()) std::fprintf(stderr, "bonsai-bench-step: %s\n", status.message().c_str());
    return status.ok() ? 0 : 1;
}
