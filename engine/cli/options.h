// SPDX-License-Identifier: Apache-2.0
// The command line as data: what may be written (one table), what was written (Options).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bonsai::cli {

constexpr int32_t kMaxSteps = 1000; // that the library takes

enum class Command { kDraw, kInfo, kVerify, kDoctor, kDevices, kDryRun, kVersion, kHelp };

// Empty: not given, the model file or the library decides.
struct Options {
    Command command = Command::kDraw;
    std::optional<std::string> prompt, model, output, from, device, save_embeds, load_embeds;
    std::optional<int32_t> width, height, steps, images, threads;
    std::optional<int32_t> precision, noise_dtype,
        timestep_dtype; // values of the enums in bonsai.h
    std::optional<float> guidance, shift;
    std::optional<uint64_t> seed, max_memory;
    bool json = false;
    int verbosity = 1; // 0 with -q, 2 with -v
};

// Throws Failure(kExitUsage) naming the option, what was expected and what was found. arguments
// excludes the program's name.
Options parse_options(const std::vector<std::string>& arguments);

std::string help_text();

// Parsers of single values, shared with --from; `name` is what the message calls the value.
uint64_t parse_unsigned(const std::string& name, const std::string& text, uint64_t max);
int32_t parse_count(const std::string& name, const std::string& text, int32_t min, int32_t max);
float parse_float(const std::string& name, const std::string& text, float min, float max);
void parse_size(const std::string& name, const std::string& text, Options& options);
int32_t parse_choice(const std::string& name, const std::string& text,
                     const std::vector<std::string>& choices);
const std::vector<std::string>& dtype_names();     // in the order of bonsai_dtype
const std::vector<std::string>& precision_names(); // in the order of bonsai_precision

} // namespace bonsai::cli
