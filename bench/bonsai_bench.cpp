// SPDX-License-Identifier: Apache-2.0
// bonsai-bench: how long the stages and ops of a picture take on this machine.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "bonsai.h"
#include "stages.h"

namespace {

using bonsai::bench::Case;
using bonsai::bench::Record;

constexpr const char* kUsage =
    R"(usage: bonsai-bench -m MODEL.gguf [options]

Draws a picture from a cold start --repeat times for every combination of sizes, threads and
precisions, and prints the medians: wall clock, processor seconds of all threads, rate, resident
memory. With --ops also every op, the costliest first, with its share of what a core can do at
most (a loop of byte or float products on 256 bits, measured beside it, in processor time).

  -m, --model FILE        the model (required)
  -s, --size WxH[,WxH]    sizes of the picture; default: the model's
  -t, --threads N[,N]     threads; default: one for each physical core
  -p, --precision P[,P]   fast, exact; default fast
      --steps N           denoising steps; default: the model's
      --device ID         as in bonsai-cli; default auto
      --max-memory BYTES  as in bonsai-cli; default: what is free
  -r, --repeat N          runs of each combination; default 3
      --ops               one more row for each op
  -o, --output FORMAT     md, csv or json; default md
      --compare OLD.json  beside each row what an earlier run (-o json) took (md only)
  -h, --help              this text

The level of instructions is the best of the processor, or what BONSAI_CPU names.
)";

struct Options {
    std::vector<std::pair<int64_t, int64_t>> sizes = {{0, 0}};
    std::vector<int> threads = {0};
    std::vector<bool> exact = {false};
    Case common;
    std::string output = "md", compare;
};

[[noreturn]] void refuse(const std::string& why) {
    std::fprintf(stderr, "bonsai-bench: %s; see bonsai-bench --help\n", why.c_str());
    std::exit(2);
}

std::vector<std::string> split(const std::string& list) {
    std::vector<std::string> parts;
    std::stringstream in(list);
    for (std::string part; std::getline(in, part, ',');)
        parts.push_back(part);
    return parts;
}

// A whole number of at least `least`.
int64_t number(const std::string& option, const std::string& value, int64_t least) {
    char* end = nullptr;
    const long long n = std::strtoll(value.c_str(), &end, 10);
    if (value.empty() || *end || n < least)
        refuse(option + " " + value + ": expected a whole number of at least " +
               std::to_string(least));
    return n;
}

void set_size(const std::string& value, Options* options) {
    options->sizes.clear();
    for (const std::string& part : split(value)) {
        const size_t x = part.find('x');
        if (x == std::string::npos) refuse("--size " + part + ": expected e.g. 512x512");
        options->sizes.emplace_back(number("--size", part.substr(0, x), 16),
                                    number("--size", part.substr(x + 1), 16));
    }
}

void set_precision(const std::string& value, Options* options) {
    options->exact.clear();
    for (const std::string& part : split(value)) {
        if (part != "fast" && part != "exact")
            refuse("--precision " + part + ": expected fast or exact");
        options->exact.push_back(part == "exact");
    }
}

void set(const std::string& option, const std::string& value, Options* options) {
    Case& common = options->common;
    if (option == "-m" || option == "--model") {
        common.model = value;
    } else if (option == "-s" || option == "--size") {
        set_size(value, options);
    } else if (option == "-t" || option == "--threads") {
        options->threads.clear();
        for (const std::string& part : split(value))
            options->threads.push_back(static_cast<int>(number(option, part, 1)));
    } else if (option == "-p" || option == "--precision") {
        set_precision(value, options);
    } else if (option == "--steps") {
        common.steps = number(option, value, 1);
    } else if (option == "--device") {
        common.device = value;
    } else if (option == "--max-memory") {
        common.max_memory = static_cast<uint64_t>(number(option, value, 1));
    } else if (option == "-r" || option == "--repeat") {
        common.repeats = static_cast<int>(number(option, value, 1));
    } else if (option == "-o" || option == "--output") {
        if (value != "md" && value != "csv" && value != "json")
            refuse("--output " + value + ": expected md, csv or json");
        options->output = value;
    } else if (option == "--compare") {
        options->compare = value;
    } else {
        refuse("unknown option " + option);
    }
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        if (option == "-h" || option == "--help") {
            std::fputs(kUsage, stdout);
            std::exit(0);
        }
        if (option == "--ops") {
            options.common.ops = true;
            continue;
        }
        if (i + 1 == argc) refuse(option + ": a value is missing");
        set(option, argv[++i], &options);
    }
    if (options.common.model.empty()) refuse("no model: name one with -m");
    return options;
}

std::vector<Record> run(const Options& options) {
    std::vector<Record> records;
    for (const auto& [width, height] : options.sizes)
        for (const int threads : options.threads)
            for (const bool exact : options.exact) {
                Case what = options.common;
                what.width = width;
                what.height = height;
                what.threads = threads;
                what.exact = exact;
                const bonsai::Status status = bonsai::bench::measure(what, &records);
                if (status.ok()) continue;
                std::fprintf(stderr, "bonsai-bench: %s\n", status.message().c_str());
                std::exit(1);
            }
    return records;
}

} // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    std::vector<Record> old;
    std::string why;
    if (!options.compare.empty() && !bonsai::bench::read_json(options.compare, &old, &why)) {
        std::fprintf(stderr, "bonsai-bench: %s\n", why.c_str());
        return 1;
    }
    const std::vector<Record> records = run(options);
    std::string text;
    if (options.output == "md")
        text = "bonsai " BONSAI_VERSION ", " + records[0].model + ", " + records[0].precision +
               "\n\n" + to_markdown(records, old);
    else
        text = options.output == "csv" ? to_csv(records) : to_json(records);
    std::fputs(text.c_str(), stdout);
    return 0;
}
