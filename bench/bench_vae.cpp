// SPDX-License-Identifier: Apache-2.0
// bonsai-bench-vae: the VAE decoder on random latents, whole and within memory budgets: the arena's
// bytes, median times (wall, and of all threads), and how far the pixels are from those of the
// first budget.
//
//   bonsai-bench-vae MODEL DEVICE fast|exact WIDTHxHEIGHT RUNS [BUDGET...]   (MB; 0: the whole)
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/rng.h"
#include "model/vae.h"

using namespace bonsai;

namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

struct Bench {
    Backend& backend;
    const VaeDecoder& vae;
    int64_t height, width; // of the latents
    std::vector<float> latents;

    int64_t channels() const { return static_cast<int64_t>(latents.size()) / (height * width); }
    Status decode(const Run& run, uint64_t budget, std::vector<float>* pixels) const {
        Tensor in, out;
        BONSAI_TRY(run.arena.allocate(height * width, channels(), &in));
        BONSAI_TRY(run.arena.allocate(64 * height * width, 3, &out));
        BONSAI_TRY(run.backend.write(in, latents.data()));
        BONSAI_TRY(vae.decode(run, in, height, width, budget, out));
        if (!pixels) return Status();
        pixels->resize(static_cast<size_t>(out.rows * 3));
        return run.backend.read(out, pixels->data());
    }
    Status measure(uint64_t budget, int runs, size_t* bytes, double* seconds, double* processor,
                   std::vector<float>* pixels) const {
        PlanBackend plan(backend);
        Arena planned;
        BONSAI_TRY(decode(Run{plan, planned, nullptr, nullptr}, budget, nullptr));
        *bytes = planned.peak();
        std::vector<double> times, busy;
        for (int i = 0; i < runs; ++i) {
            std::unique_ptr<Arena> arena;
            BONSAI_TRY(Arena::create(backend, *bytes, &arena));
            BONSAI_TRY(backend.synchronize());
            const double start = now();
            const std::clock_t busy_start = std::clock();
            BONSAI_TRY(decode(Run{backend, *arena, nullptr, nullptr}, budget, pixels));
            times.push_back(now() - start);
            busy.push_back(static_cast<double>(std::clock() - busy_start) / CLOCKS_PER_SEC);
        }
        std::sort(times.begin(), times.end()), std::sort(busy.begin(), busy.end());
        *seconds = times[times.size() / 2], *processor = busy[busy.size() / 2];
        return Status();
    }
};

// Of values from -1 to 1.
double decibels(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i)
        sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
    return 10 * std::log10(4 * static_cast<double>(a.size()) / sum);
}

Status run(int argc, char** argv) {
    int64_t picture_width = 0, picture_height = 0;
    int used = 0;
    if (!bench::parse_size(argv[4], &picture_width, &picture_height, &used) || argv[4][used] != 0)
        return fail(ErrorCode::kArgument, "%s: expected WIDTHxHEIGHT, multiples of 16", argv[4]);
    std::unique_ptr<GgufFile> file;
    std::unique_ptr<Backend> backend;
    Config config;
    VaeDecoder vae;
    BONSAI_TRY(GgufFile::open(argv[1], &file));
    BONSAI_TRY(read_config(*file, &config));
    BackendOptions options;
    if (!bench::parse_precision(argv[3], &options.precision))
        return fail(ErrorCode::kArgument, "%s: expected fast or exact", argv[3]);
    BONSAI_TRY(create_backend(argv[2], options, &backend));
    WeightLoader loader(*file, *backend);
    BONSAI_TRY(vae.load(config.vae, loader));

    Bench bench{*backend, vae, picture_height / 8, picture_width / 8, {}};
    bench.latents.resize(
        static_cast<size_t>(bench.height * bench.width * config.vae.latent_channels));
    torch_cpu_randn(1, bench.latents.data(), bench.latents.size());
    std::vector<float> whole, pixels;
    std::printf("| budget, MB | arena, MB | ms | processor s | pixels |\n|---|---|---|---|---|\n");
    std::vector<uint64_t> budgets;
    for (int i = 6; i < argc; ++i)
        budgets.push_back(std::strtoull(argv[i], nullptr, 10) * 1000000);
    if (budgets.empty()) budgets.push_back(0);
    for (const uint64_t budget : budgets) {
        size_t bytes = 0;
        double seconds = 0, processor = 0;
        BONSAI_TRY(bench.measure(budget > 0 ? budget : VaeDecoder::kUnlimited,
                                 std::max(1, std::atoi(argv[5])), &bytes, &seconds, &processor,
                                 &pixels));
        if (whole.empty()) whole = pixels;
        const bool same =
            std::memcmp(whole.data(), pixels.data(), pixels.size() * sizeof(float)) == 0;
        std::printf("| %.0f | %.1f | %.2f | %.2f | ", static_cast<double>(budget) / 1e6,
                    static_cast<double>(bytes) / 1e6, seconds * 1e3, processor);
        if (same)
            std::printf("the same |\n");
        else
            std::printf("%.1f dB |\n", decibels(whole, pixels));
        std::fflush(stdout);
    }
    return Status();
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: bonsai-bench-vae MODEL DEVICE fast|exact WIDTHxHEIGHT RUNS "
                             "[BUDGET...]\n");
        return 2;
    }
    const Status status = run(argc, argv);
    if (!status.ok()) std::fprintf(stderr, "bonsai-bench-vae: %s\n", status.message().c_str());
    return status.ok() ? 0 : 1;
}
